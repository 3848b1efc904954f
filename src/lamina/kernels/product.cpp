// Products of hundreds of rows with a linear's weights, forward and back, its update and a residual
// added before the result is rounded, once.
//
// Weights are put in order panel by panel as they are used (a hundredth of the time), for both
// threads, so that nothing is held twice. Every number is one chain of sums, along the inputs in
// pairs: first the weights', then the update's. A row's numbers do not depend on other rows, on tiles or on threads.
#include "simd.h"

namespace {
const long WIDE = 64, ROWS = 96;         // outputs of a panel, rows of a task
const long PACKED = 3 << 18;             // words of panels that are in order at once
struct Part {                            // a member's outputs and its update
    const u16* b;                        // (outs, ranks), times its scale
    long outs, first, ranks;             // `first` of its ranks among the columns of u
};
struct Panel {
    long start, width;                   // outputs
    const Part* part;
    long row;                            // of the part's b
};
// words [R/2][width] of (width, R) rows: lanes are rows
void lanes_of(const u16* b, long R, long width, u32* out) {
    for (long r = 0; r < R / 2; r++)
        for (long n = 0; n < width; n++) memcpy(out + r * width + n, b + n * R + 2 * r, 4);
}
void tile(long rows, long width, const u16* x, long xs, const u32* w, long kp, const u16* u, long us,
          const u32* b, long rp, float* c) {
    gemm(rows, width, kp, (const u32*)x, xs / 2, 1, w, width, c, WIDE, false);
    if (rp) gemm(rows, width, rp, (const u32*)u, us / 2, 1, b, width, c, WIDE, true);
}
void put(long rows, long width, const float* c, const u16* residual, long rs, u16* y, long ys) {
    for (long r = 0; r < rows; r++)
        for (long n = 0; n < width; n += 16) {
            __m512 a = _mm512_loadu_ps(c + r * WIDE + n);
            if (residual) a = _mm512_add_ps(a, ld(residual + r * rs + n));
            st(y + r * ys + n, a);
        }
}
// all panels, as many at once as PACKED holds: `pack` puts panel p in order, `rp(p)` words of update
template <class Pack, class Update, class Width>
void panels_of(long count, long kp, long most_rp, long N, const u16* x, long xs, const u16* u, long us,
               const u16* residual, u16* y, long ys, Pack pack, Update update, Width at) {
    const long words = (kp + most_rp) * WIDE, group = std::max(1L, std::min(count, PACKED / words));
    scratch.need((size_t)group * words * 4 + 64);
    u32* const room = scratch.take<u32>(group * words);
    const long blocks = (N + ROWS - 1) / ROWS;
#pragma omp parallel
    for (long p0 = 0; p0 < count; p0 += group) {
        const long here = std::min(group, count - p0);
#pragma omp for schedule(static)
        for (long i = 0; i < here; i++) pack(p0 + i, room + i * words);
#pragma omp for schedule(dynamic, 1)
        for (long task = 0; task < blocks * here; task++) {
            alignas(64) float c[ROWS * WIDE];
            long i = task % here, lo = task / here * ROWS, rows = std::min(ROWS, N - lo), start, width;
            at(p0 + i, start, width);
            long first = 0, rp = 0;
            update(p0 + i, first, rp);
            const u32* w = room + i * words;
            tile(rows, width, x + lo * xs, xs, w, kp, u ? u + lo * us + first : nullptr, us,
                 w + kp * WIDE, rp, c);
            put(rows, width, c, residual ? residual + lo * ys + start : nullptr, ys,
                y + lo * ys + start, ys);
        }
    }
}
}  // namespace

extern "C" {
// y (N, O) = x (N, I) w^T + u (N, R) b^T (+ residual (N, O)); parts (P, 4): b, outs, first, ranks
void product_forward(const u16* x, const u16* w, const u16* residual, const u16* u, u16* y,
                     const int64_t* parts, long count, long N, long I, long O, long R) {
    Part* made = new Part[count];
    Panel* panels = new Panel[O / 16];
    long total = 0, start = 0, most = 0;
    for (long m = 0; m < count; m++) {
        const int64_t* t = parts + 4 * m;
        made[m] = {(const u16*)t[0], (long)t[1], (long)t[2], (long)t[3]};
        most = std::max(most, made[m].ranks / 2);
        for (long row = 0; row < made[m].outs; row += WIDE)
            panels[total++] = {start + row, std::min(WIDE, made[m].outs - row), made + m, row};
        start += made[m].outs;
    }
    const long kp = I / 2;
    panels_of(
        total, kp, most, N, x, I, u, R, residual, y, O,
        [&](long p, u32* out) {
            const Panel& at = panels[p];
            pack_lanes(w + at.start * I, I, at.width, I, out, at.width);
            if (at.part->ranks)
                lanes_of(at.part->b + at.row * at.part->ranks, at.part->ranks, at.width,
                         out + kp * WIDE);
        },
        [&](long p, long& first, long& rp) {
            first = panels[p].part->first, rp = panels[p].part->ranks / 2;
        },
        [&](long p, long& from, long& width) { from = panels[p].start, width = panels[p].width; });
    delete[] panels;
    delete[] made;
}
// dx (N, I) = g (N, O) w + v (N, R) a (R, I)
void product_back(const u16* g, const u16* w, const u16* v, const u16* a, u16* dx, long N, long I,
                  long O, long R) {
    const long kp = O / 2;
    auto width = [&](long p) { return std::min(WIDE, I - p * WIDE); };
    panels_of(
        (I + WIDE - 1) / WIDE, kp, R / 2, N, g, O, v, R, nullptr, dx, I,
        [&](long p, u32* out) {
            const long n = width(p);
            for (long o = 0; o < O; o += 2) pack_pairs(w + o * I + p * WIDE, I, 2, n, out + o / 2 * n);
            if (R) pack_pairs(a + p * WIDE, I, R, n, out + kp * WIDE);
        },
        [&](long, long& first, long& rp) { first = 0, rp = R / 2; },
        [&](long p, long& from, long& n) { from = p * WIDE, n = width(p); });
}
}
