// One pass of a decoder over N rows (tokens) of many sequences, each with its own stack of layers:
// the base's products once for all rows, each row's low-rank terms in the same accumulators, keys
// and values in blocks. See lamina.serve.native for what the tables hold.
//
// Every number has one order of summation, whatever else is in the batch, however a prompt is cut
// into chunks and whatever the number of threads: a row's answer is the same to the bit.
//
// Packed weights: panels of 32 outputs, a word holds two neighbours of the inputs: [O/32][I/2][32].
#include "simd.h"

namespace {
const long TILE = 12;    // rows of a product's tile
const long PART = 4;     // rows whose low-rank terms are one task
const long COLS = 32;    // outputs of a panel
const long BLOCK = 32;   // tokens of a block of the cache
const long QUERIES = 24; // queries of a tile of attention

// c[m][0..31] += sum over k of x[m][k] . w[k][0..31]
template <int MR>
INL void tile(const u32* x, long xs, const u32* w, long kp, float* c, const char* ahead,
              long step) {
    __m512 a[MR], b[MR];
    for (int m = 0; m < MR; m++) {
        a[m] = _mm512_load_ps(c + m * COLS);
        b[m] = _mm512_load_ps(c + m * COLS + 16);
    }
    for (long k = 0; k < kp; k++) {
        __m512i w0 = _mm512_loadu_si512(w + k * 32), w1 = _mm512_loadu_si512(w + k * 32 + 16);
        _mm_prefetch(ahead + k * step, _MM_HINT_T1);
#pragma GCC unroll 16
        for (int m = 0; m < MR; m++) {
            __m512i s = _mm512_set1_epi32((int)x[m * xs + k]);
            a[m] = _mm512_dpbf16_ps(a[m], (__m512bh)s, (__m512bh)w0);
            b[m] = _mm512_dpbf16_ps(b[m], (__m512bh)s, (__m512bh)w1);
        }
    }
    for (int m = 0; m < MR; m++) {
        _mm512_store_ps(c + m * COLS, a[m]);
        _mm512_store_ps(c + m * COLS + 16, b[m]);
    }
}
void tiles(long rows, const u32* x, long xs, const u32* w, long kp, float* c, const char* ahead,
           long step) {
    switch (rows) {
#define CASE(n)                                       \
    case n:                                           \
        tile<n>(x, xs, w, kp, c, ahead, step);        \
        break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11)
#undef CASE
        default:
            tile<12>(x, xs, w, kp, c, ahead, step);
    }
}

// 16 words of two signed bytes each, as bfloat16
INL __m512i bytes_at(const char* p) {
    __m256i raw = _mm256_loadu_si256((const __m256i*)p);
    __m512 lo = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(raw)));
    __m512 hi = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(raw, 1)));
    return (__m512i)_mm512_cvtne2ps_pbh(hi, lo);
}
// c[m][0..15] += sum over k of x[m][k] . w[k][0..15], even k and odd k apart, w in bytes
template <int MR>
INL void byte_rows(const u32* x, long xs, const char* w, long kp, float* c, long ldc) {
    __m512 even[MR], odd[MR];
    for (int m = 0; m < MR; m++) even[m] = _mm512_loadu_ps(c + m * ldc), odd[m] = _mm512_setzero_ps();
    long k = 0;
    for (; k + 2 <= kp; k += 2) {
        __m512i w0 = bytes_at(w + k * 32), w1 = bytes_at(w + k * 32 + 32);
#pragma GCC unroll 4
        for (int m = 0; m < MR; m++) {
            __m512i s0 = _mm512_set1_epi32((int)x[m * xs + k]);
            __m512i s1 = _mm512_set1_epi32((int)x[m * xs + k + 1]);
            even[m] = _mm512_dpbf16_ps(even[m], (__m512bh)s0, (__m512bh)w0);
            odd[m] = _mm512_dpbf16_ps(odd[m], (__m512bh)s1, (__m512bh)w1);
        }
    }
    if (k < kp) {
        __m512i w0 = bytes_at(w + k * 32);
        for (int m = 0; m < MR; m++) {
            __m512i s0 = _mm512_set1_epi32((int)x[m * xs + k]);
            even[m] = _mm512_dpbf16_ps(even[m], (__m512bh)s0, (__m512bh)w0);
        }
    }
    for (int m = 0; m < MR; m++) _mm512_storeu_ps(c + m * ldc, _mm512_add_ps(even[m], odd[m]));
}
void byte_product(long rows, const u32* x, long xs, const char* w, long kp, float* c, long ldc) {
    switch (rows) {
        case 1:
            return byte_rows<1>(x, xs, w, kp, c, ldc);
        case 2:
            return byte_rows<2>(x, xs, w, kp, c, ldc);
        case 3:
            return byte_rows<3>(x, xs, w, kp, c, ldc);
        default:
            return byte_rows<4>(x, xs, w, kp, c, ldc);
    }
}

// c[m][j * by + 0..15] += sum over k of u[m][k] . b[j][k][0..15], of N chunks
template <int MR, int N, bool BYTES>
INL void chunks(const u32* u, long us, const u32* b, long pairs, float* c, long ldc, long by) {
    __m512 a[MR][N];
    for (int m = 0; m < MR; m++)
        for (int j = 0; j < N; j++) a[m][j] = _mm512_loadu_ps(c + m * ldc + j * by);
    for (long k = 0; k < pairs; k++) {
        __m512i w[N];
#pragma GCC unroll 4
        for (int j = 0; j < N; j++)
            w[j] = BYTES ? bytes_at((const char*)b + (j * pairs + k) * 32)
                         : _mm512_loadu_si512(b + (j * pairs + k) * 16);
#pragma GCC unroll 4
        for (int m = 0; m < MR; m++) {
            __m512i s = _mm512_set1_epi32((int)u[m * us + k]);
#pragma GCC unroll 4
            for (int j = 0; j < N; j++)
                a[m][j] = _mm512_dpbf16_ps(a[m][j], (__m512bh)s, (__m512bh)w[j]);
        }
    }
    for (int m = 0; m < MR; m++)
        for (int j = 0; j < N; j++) _mm512_storeu_ps(c + m * ldc + j * by, a[m][j]);
}
template <int MR, bool BYTES>
INL void all_chunks(const u32* u, long us, const u32* b, long pairs, float* c, long ldc, long by,
                    long count) {
    const long words = pairs * (BYTES ? 8 : 16);
    long i = 0;
    for (; i + 4 <= count; i += 4)
        chunks<MR, 4, BYTES>(u, us, b + i * words, pairs, c + i * by, ldc, by);
    for (; i < count; i++)
        chunks<MR, 1, BYTES>(u, us, b + i * words, pairs, c + i * by, ldc, by);
}
template <bool BYTES>
void add_chunks(long rows, const u32* u, long us, const u32* b, long pairs, float* c, long ldc,
                long by, long count) {
    switch (rows) {
        case 1:
            return all_chunks<1, BYTES>(u, us, b, pairs, c, ldc, by, count);
        case 2:
            return all_chunks<2, BYTES>(u, us, b, pairs, c, ldc, by, count);
        case 3:
            return all_chunks<3, BYTES>(u, us, b, pairs, c, ldc, by, count);
        default:
            return all_chunks<4, BYTES>(u, us, b, pairs, c, ldc, by, count);
    }
}

// A linear, or several that read one tensor.
struct Linear {
    const u32* w;       // packed
    const float* bias;  // (O) or null
    long in, out;
    long members;       // 1 to 3
    long ends[3];       // the members' last 16-column chunks + 1; gate and up: interleaved
    bool interleaved;
};
// What a layer adds to one Linear.
struct Update {
    const u32* a;  // packed [I/2][ranks], of bytes [ranks/16][I/2][16]; null: nothing
    long ranks;    // of all members, each even, together filled up to a multiple of 16
    struct {
        long first, pairs;  // columns of u
        const u32* b;       // [O/16][pairs][16]
    } of[3];
    const float* scale;  // (ranks): what bytes are multiplied with; null: bfloat16 words
};
const long LINEARS = 4, UPDATE_WORDS = 12;
Update update_at(const int64_t* table, long layer, long linear) {
    const int64_t* t = table + (layer * LINEARS + linear) * UPDATE_WORDS;
    Update u;
    u.a = (const u32*)t[0];
    u.ranks = t[1];
    for (long m = 0; m < 3; m++)
        u.of[m].first = t[2 + 3 * m], u.of[m].pairs = t[3 + 3 * m],
        u.of[m].b = (const u32*)t[4 + 3 * m];
    u.scale = (const float*)t[11];
    return u;
}
// Rows of one part that one layer is added to.
struct Piece {
    const int64_t* table;
    long lo, hi;
    u16* u;  // (hi - lo, ranks)
};
enum Finish { PLAIN, RESIDUAL, GATED, LOGITS };

// Sums begin with the bias, then come the layers', lowest first, then the base's.
struct Pass {
    long N, C, F, H, K, D, qkv_width;
    float eps, scale;
    const Piece* pieces;      // ordered by part, then by depth
    const int64_t* piece_of;  // first piece of each part, and the end
    const int64_t* alike;     // of each tile: whether its rows have the same layers
    float* terms;             // (N, out): low-rank terms of rows in other tiles
    long piece_count;

    // y = x W^T + updates, for all rows; shared by the threads of the region
    void product(const Linear& l, long layer, long which, const u16* x, long N_, void* y, Finish how,
                 bool updates) const {
        const long panels = l.out / COLS, kp = l.in / 2, count = (N_ + TILE - 1) / TILE;
        // every tile of a panel fetches its part of the next panel, so that weights come evenly
        const long step = std::min(64L, 128 / count);
        alignas(64) float c[TILE * COLS];
#pragma omp for schedule(guided)
        for (long p = 0; p < panels; p++) {
            const u32* w = l.w + p * kp * COLS;
            for (long t = 0; t < count; t++) {
                long lo = t * TILE, rows = std::min(TILE, N_ - lo);
                const char* ahead = (const char*)(w + kp * COLS) + t * kp * step;
                if (updates && !alike[t])
                    for (long r = 0; r < rows; r++)
                        memcpy(c + r * COLS, terms + (lo + r) * l.out + p * COLS, 4 * COLS);
                else {
                    begin(l, p * COLS, COLS, rows, c, COLS);
                    if (updates) add_alike(l, layer, which, t, p, rows, c);
                }
                tiles(rows, (const u32*)(x + lo * l.in), kp, w, kp, c, ahead, step);
                finish(c, lo, rows, p, y, how, l.out);
            }
        }
    }
    static void begin(const Linear& l, long first, long cols, long rows, float* c, long ldc) {
        for (long r = 0; r < rows; r++)
            if (l.bias)
                memcpy(c + r * ldc, l.bias + first, 4 * cols);
            else
                memset(c + r * ldc, 0, 4 * cols);
    }
    // chunks of 16 columns from `chunk` to `end` of a member, `by` columns apart
    static void widen(const Linear& l, const Update& up_, const Piece& piece, long m, long chunk,
                      long end, float* c, long ldc) {
        const long pairs = up_.of[m].pairs, by = l.interleaved ? 32 : 16;
        if (!pairs) return;
        const u32* u = (const u32*)piece.u + up_.of[m].first / 2;
        const long rows = piece.hi - piece.lo, us = up_.ranks / 2;
        const u32* b = up_.of[m].b + chunk * pairs * (up_.scale ? 8 : 16);
        if (up_.scale)
            add_chunks<true>(rows, u, us, b, pairs, c, ldc, by, end - chunk);
        else
            add_chunks<false>(rows, u, us, b, pairs, c, ldc, by, end - chunk);
    }
    void add_alike(const Linear& l, long layer, long which, long t, long p, long rows,
                   float* c) const {
        const long parts = (rows + PART - 1) / PART;
        for (long part = t * (TILE / PART); part < t * (TILE / PART) + parts; part++)
            for (long i = piece_of[part]; i < piece_of[part + 1]; i++) {
                const Update up_ = update_at(pieces[i].table, layer, which);
                if (!up_.a) continue;
                float* at = c + (pieces[i].lo - t * TILE) * COLS;
                for (long half = 0; half < 2; half++) {
                    long chunk = 2 * p + half, m = 0;
                    if (l.interleaved)
                        m = half, chunk = p;
                    else {
                        while (chunk >= l.ends[m]) m++;
                        if (m) chunk -= l.ends[m - 1];
                    }
                    widen(l, up_, pieces[i], m, chunk, chunk + 1, at + half * 16, COLS);
                }
            }
    }
    // u = x A^T of every piece; where a tile's rows differ, u B^T too, each layer read in one go
    void narrow(const Linear& l, long layer, long which, const u16* x) const {
        if (!piece_count) return;
        const long parts = (N + PART - 1) / PART;
#pragma omp for schedule(dynamic, 1)
        for (long part = 0; part < parts; part++) {
            const bool wide = !alike[part * PART / TILE];
            const long first = part * PART;
            if (wide)
                begin(l, 0, l.out, std::min(PART, N - first), terms + first * l.out, l.out);
            for (long i = piece_of[part]; i < piece_of[part + 1]; i++) {
                const Piece& piece = pieces[i];
                const Update up_ = update_at(piece.table, layer, which);
                if (!up_.a) continue;
                if (i + 1 < piece_count) fetch(update_at(pieces[i + 1].table, layer, which));
                project(up_, piece, l.in, x);
                if (!wide) continue;
                for (long m = 0; m < l.members; m++) {
                    long before = m ? l.ends[m - 1] : 0, chunks = l.ends[m] - before;
                    float* at = terms + piece.lo * l.out + (l.interleaved ? m : before) * 16;
                    widen(l, up_, piece, m, 0, chunks, at, l.out);
                }
            }
        }
    }
    // the beginning of an update: the processor notices by itself how it goes on, but late
    static void fetch(const Update& up_) {
        for (long i = 0; i < 32; i++) {
            _mm_prefetch((const char*)up_.a + i * 64, _MM_HINT_T1);
            _mm_prefetch((const char*)up_.of[0].b + i * 64, _MM_HINT_T1);
        }
    }
    static void scaled(const Update& up_, long rows, long first, long cols, const u32* x, long kp,
                       float* c) {
        memset(c, 0, rows * 64 * 4);
        for (long n = 0; n < cols; n += 16) {
            byte_product(rows, x, kp, (const char*)up_.a + (first + n) * kp * 2, kp, c + n, 64);
            __m512 scale = _mm512_loadu_ps(up_.scale + first + n);
            for (long r = 0; r < rows; r++) {
                float* at = c + r * 64 + n;
                _mm512_storeu_ps(at, _mm512_mul_ps(scale, _mm512_loadu_ps(at)));
            }
        }
    }
    static void project(const Update& up_, const Piece& piece, long in, const u16* x) {
        const long rows = piece.hi - piece.lo;
        alignas(64) float c[PART * 64];
        for (long n = 0; n < up_.ranks; n += 64) {
            long cols = std::min(64L, up_.ranks - n);
            const u32* xs = (const u32*)(x + piece.lo * in);
            if (up_.scale)
                scaled(up_, rows, n, cols, xs, in / 2, c);
            else
                gemm(rows, cols, in / 2, xs, in / 2, 1, up_.a + n, up_.ranks, c, 64, false);
            for (long r = 0; r < rows; r++) to_bf16(c + r * 64, piece.u + r * up_.ranks + n, cols);
        }
    }
    void finish(const float* c, long lo, long rows, long p, void* y, Finish how, long out) const {
        for (long r = 0; r < rows; r++) {
            const float* s = c + r * COLS;
            __m512 a = _mm512_load_ps(s), b = _mm512_load_ps(s + 16);
            if (how == LOGITS) {
                float* z = (float*)y + (lo + r) * out + p * COLS;
                _mm512_storeu_ps(z, a);
                _mm512_storeu_ps(z + 16, b);
            } else if (how == GATED) {
                u16* h = (u16*)y + (lo + r) * F + p * 16;
                st(h, _mm512_mul_ps(_mm512_mul_ps(a, sigmoid(a)), b));
            } else {
                u16* z = (u16*)y + (lo + r) * out + p * COLS;
                if (how == RESIDUAL) {
                    a = _mm512_add_ps(a, ld(z));
                    b = _mm512_add_ps(b, ld(z + 16));
                }
                st(z, a);
                st(z + 16, b);
            }
        }
    }
    void norm(const u16* x, const u16* w, u16* y, long rows) const {
#pragma omp for schedule(static)
        for (long n = 0; n < rows; n++) norm_row(x + n * C, w, y + n * C, C);
    }
    void norm_row(const u16* x, const u16* w, u16* y, long n) const {
        __m512 sum = _mm512_setzero_ps();
        for (long c = 0; c < n; c += 16) sum = _mm512_fmadd_ps(ld(x + c), ld(x + c), sum);
        __m512 r = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(sum) / (float)n + eps));
        for (long c = 0; c < n; c += 16)
            st(y + c, _mm512_mul_ps(_mm512_mul_ps(ld(x + c), r), ld(w + c)));
    }
};

// Where sequences' tokens and their keys and values are.
struct Cache {
    u32 *k, *v;             // [K][D/2][BLOCK] and [K][BLOCK/2][D] of one layer, in each block
    long stride;            // from block to block, which holds all layers
    const int32_t* blocks;  // (S, width): each sequence's blocks in order
    long width;
    const int64_t *start, *past;  // (S + 1) first rows; (S) tokens that are there already
    const int32_t* seq;           // (N) each row's sequence
    u32* keys(long s, long b, const Pass& p, long j) const {
        return k + blocks[s * width + b] * stride + j * (p.D / 2) * BLOCK;
    }
    u32* values(long s, long b, const Pass& p, long j) const {
        return v + blocks[s * width + b] * stride + j * (BLOCK / 2) * p.D;
    }
};

void turn(u16* x, const float* cos_, const float* sin_, long D) {
    for (long d = 0; d < D / 2; d += 16) {
        __m512 a = ld(x + d), b = ld(x + d + D / 2), c = _mm512_loadu_ps(cos_ + d),
               s = _mm512_loadu_ps(sin_ + d);
        st(x + d, _mm512_fnmadd_ps(b, s, _mm512_mul_ps(a, c)));
        st(x + d + D / 2, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)));
    }
}
// queries and keys by head normed and turned, keys and values put into the cache
void place(const Pass& p, const Cache& cache, u16* qkv, const u16* qn, const u16* kn, bool rotated,
           const float* cos_, const float* sin_) {
#pragma omp for schedule(static)
    for (long n = 0; n < p.N; n++) {
        u16* row = qkv + n * p.qkv_width;
        for (long h = 0; h < p.H + p.K; h++) {
            u16* x = row + h * p.D;
            if (qn) p.norm_row(x, h < p.H ? qn : kn, x, p.D);
            if (rotated) turn(x, cos_ + n * (p.D / 2), sin_ + n * (p.D / 2), p.D);
        }
        long s = cache.seq[n], at = cache.past[s] + n - cache.start[s];
        long b = at / BLOCK, lane = at % BLOCK;
        for (long j = 0; j < p.K; j++) {
            const u32* key = (const u32*)(row + (p.H + j) * p.D);
            u32* keys = cache.keys(s, b, p, j) + lane;
            for (long d = 0; d < p.D / 2; d++) keys[d * BLOCK] = key[d];
            const u16* value = row + (p.H + p.K + j) * p.D;
            u16* values = (u16*)(cache.values(s, b, p, j) + lane / 2 * p.D) + lane % 2;
            for (long d = 0; d < p.D; d++) values[2 * d] = value[d];
        }
    }
}
// softmax of rows of scores over what each may see; probabilities, not divided yet, in bfloat16
void soften(const float* S, u16* P, long live, long cols, float scale, float* inverse) {
    __m512 mx = _mm512_set1_ps(-INFINITY), sc = _mm512_set1_ps(scale), sum = _mm512_setzero_ps();
    for (long j = 0; j < live; j += 16)
        mx = _mm512_mask_max_ps(mx, lanes(live - j), mx, _mm512_loadu_ps(S + j));
    __m512 mm = _mm512_set1_ps(_mm512_reduce_max_ps(mx) * scale);
    for (long j = 0; j < cols; j += 16) {
        __mmask16 some = live > j ? lanes(live - j) : 0;
        __m512 e = _mm512_maskz_mov_ps(
            some, exp512(_mm512_min_ps(_mm512_fmsub_ps(_mm512_loadu_ps(S + j), sc, mm),
                                       _mm512_setzero_ps())));
        sum = _mm512_add_ps(sum, e);
        st(P + j, e);
    }
    *inverse = 1.0f / _mm512_reduce_add_ps(sum);
}
// all words of a block of one head: blocks lie anywhere, so no processor sees them coming
INL void fetch(const u32* words, long count) {
    for (long i = 0; i < count; i += 16) _mm_prefetch((const char*)(words + i), _MM_HINT_T1);
}
// `rows` queries of one key/value head; row r sees the first `live + r * step` tokens
void attend(const Pass& p, const Cache& cache, long s, long j, const u16* q, long stride, long rows,
            long live, long step, u16* out, long out_stride) {
    long seen = live + (rows - 1) * step, blocks = (seen + BLOCK - 1) / BLOCK, wide = blocks * BLOCK;
    scratch.need((size_t)rows * wide * 6 + rows * p.D * 4 + 1024);
    float* S = scratch.take<float>(rows * wide);
    u16* P = scratch.take<u16>(rows * wide);
    float* O = scratch.take<float>(rows * p.D);
    float inverse[QUERIES];
    fetch(cache.keys(s, 0, p, j), p.D * BLOCK / 2);
    for (long b = 0; b < blocks; b++) {
        if (b + 1 < blocks) fetch(cache.keys(s, b + 1, p, j), p.D * BLOCK / 2);
        fetch(cache.values(s, b, p, j), p.D * BLOCK / 2);
        gemm(rows, BLOCK, p.D / 2, (const u32*)q, stride / 2, 1, cache.keys(s, b, p, j), BLOCK,
             S + b * BLOCK, wide, false);
    }
    for (long r = 0; r < rows; r++)
        soften(S + r * wide, P + r * wide, live + r * step, wide, p.scale, inverse + r);
    for (long b = 0; b < blocks; b++)
        gemm(rows, p.D, BLOCK / 2, (const u32*)(P + b * BLOCK), wide / 2, 1,
             cache.values(s, b, p, j), p.D, O, p.D, b > 0);
    for (long r = 0; r < rows; r++)
        for (long d = 0; d < p.D; d += 16)
            st(out + r * out_stride + d,
               _mm512_mul_ps(_mm512_set1_ps(inverse[r]), _mm512_loadu_ps(O + r * p.D + d)));
}
// tasks (T, 3): sequence, head (of keys where a sequence has one query, else of queries), first row
void attention(const Pass& p, const Cache& cache, const u16* qkv, u16* out, const int64_t* tasks,
               long count) {
    const long G = p.H / p.K, width = p.H * p.D;
#pragma omp for schedule(dynamic, 1)
    for (long i = 0; i < count; i++) {
        long s = tasks[3 * i], h = tasks[3 * i + 1], row = tasks[3 * i + 2];
        long past = cache.past[s] + row - cache.start[s];
        if (cache.start[s + 1] - cache.start[s] == 1) {
            for (long g = 0; g < G; g += QUERIES) {
                long first = h * G + g, rows = std::min(QUERIES, G - g);
                attend(p, cache, s, h, qkv + row * p.qkv_width + first * p.D, p.D, rows, past + 1, 0,
                       out + row * width + first * p.D, p.D);
            }
        } else {
            long rows = std::min(QUERIES, cache.start[s + 1] - row);
            attend(p, cache, s, h / G, qkv + row * p.qkv_width + h * p.D, p.qkv_width, rows, past + 1,
                   1, out + row * width + h * p.D, width);
        }
    }
}

Linear linear_at(const int64_t* t) {
    Linear l;
    l.w = (const u32*)t[0];
    l.bias = (const float*)t[1];
    l.in = t[2];
    l.out = t[3];
    l.interleaved = t[4];
    for (long m = 0; m < 3; m++) l.ends[m] = t[5 + m];
    l.members = l.ends[2] > l.ends[1] ? 3 : l.ends[1] > l.ends[0] ? 2 : 1;
    return l;
}
const long LINEAR_WORDS = 8, LAYER_WORDS = LINEARS * LINEAR_WORDS + 5;
}  // namespace

extern "C" {
// layers (L, LAYER_WORDS): qkv, out, gate and up, down (LINEAR_WORDS each), norm before attention,
// norm before the MLP, norms of queries and of keys by head (or 0), whether queries and keys turn.
// tail: the head's linear, the last norm. sizes: L, C, F, H, K, D, threads.
// batch: N, S, width of the block table, pieces, attention's tasks, wanted rows.
// pieces (P, 4): table of updates, lo, hi, place in u. x (N, C): embeddings in, last hidden out.
void decode_pass(const int64_t* layers, const int64_t* tail, const int64_t* sizes, float eps,
                 float scale, const int64_t* batch, const int64_t* pieces, const int64_t* piece_of,
                 const int64_t* alike, const int64_t* start, const int64_t* past, const int32_t* seq,
                 const int32_t* blocks, const int64_t* tasks, const int64_t* wanted, u32* keys,
                 u32* values, const float* cos_, const float* sin_, u16* x, u16* normed, u16* qkv,
                 u16* wide, u16* u, float* terms, float* logits) {
    const long L = sizes[0], threads = sizes[6];
    Pass p;
    p.N = batch[0], p.C = sizes[1], p.F = sizes[2], p.H = sizes[3], p.K = sizes[4], p.D = sizes[5];
    p.qkv_width = (p.H + 2 * p.K) * p.D, p.eps = eps, p.scale = scale;
    p.piece_count = batch[3], p.piece_of = piece_of, p.alike = alike, p.terms = terms;
    const long task_count = batch[4], M = batch[5], per = p.K * p.D * BLOCK / 2;
    const bool layered = p.piece_count > 0;
    Piece* made = new Piece[p.piece_count];
    for (long i = 0; i < p.piece_count; i++)
        made[i] = {(const int64_t*)pieces[4 * i], pieces[4 * i + 1], pieces[4 * i + 2],
                   u + pieces[4 * i + 3]};
    p.pieces = made;
    Cache cache = {keys, values, L * per, blocks, batch[2], start, past, seq};
#pragma omp parallel num_threads((int)threads)
    {
        Cache mine = cache;
        for (long l = 0; l < L; l++) {
            const int64_t* t = layers + l * LAYER_WORDS;
            const Linear in = linear_at(t), out = linear_at(t + LINEAR_WORDS),
                         up_ = linear_at(t + 2 * LINEAR_WORDS),
                         down = linear_at(t + 3 * LINEAR_WORDS);
            const int64_t* rest = t + LINEARS * LINEAR_WORDS;
            mine.k = keys + l * per, mine.v = values + l * per;
            p.norm(x, (const u16*)rest[0], normed, p.N);
            p.narrow(in, l, 0, normed);
            p.product(in, l, 0, normed, p.N, qkv, PLAIN, layered);
            place(p, mine, qkv, (const u16*)rest[2], (const u16*)rest[3], rest[4], cos_, sin_);
            attention(p, mine, qkv, wide, tasks, task_count);
            p.narrow(out, l, 1, wide);
            p.product(out, l, 1, wide, p.N, x, RESIDUAL, layered);
            p.norm(x, (const u16*)rest[1], normed, p.N);
            p.narrow(up_, l, 2, normed);
            p.product(up_, l, 2, normed, p.N, wide, GATED, layered);
            p.narrow(down, l, 3, wide);
            p.product(down, l, 3, wide, p.N, x, RESIDUAL, layered);
        }
#pragma omp for schedule(static)
        for (long i = 0; i < M; i++)
            p.norm_row(x + wanted[i] * p.C, (const u16*)tail[LINEAR_WORDS], normed + i * p.C, p.C);
        if (M) p.product(linear_at(tail), 0, 0, normed, M, logits, LOGITS, false);
    }
    delete[] made;
}
}
