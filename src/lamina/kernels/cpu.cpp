// What lamina.kernels.reference says, for processors with AVX-512 BF16: bfloat16 in and out, sums
// in float32. Plain C functions on contiguous rows; one OpenMP pool, torch's. Every sum has a fixed
// order, whatever the number of threads.
//
// Sizes: N tokens of S packed sequences, H query heads, K key/value heads (H a multiple of K), D
// channels a head (a multiple of 32), C channels (a multiple of 16). Strides are in elements and
// even.
#include "simd.h"

extern "C" {
// q (N, H, D), k and v (N, K, D) with one row stride; o (N, H, D) contiguous; lse (H, N)
void attention_forward(const u16* q, const u16* k, const u16* v, u16* o, float* lse,
                       const int64_t* starts, long nseq, long N, long H, long K, long D,
                       long stride, float scale) {
    const long BQ = 24;
#pragma omp parallel for schedule(dynamic, 1)
    for (long task = 0; task < nseq * H; task++) {
        long s = task / H, h = task % H, kh = h / (H / K);
        long t0 = starts[s], T = starts[s + 1] - t0, Tp = up(T, 64);
        scratch.need((size_t)Tp * D * 4 + BQ * Tp * 8 + BQ * D * 4 + 4096);
        u32* kl = scratch.take<u32>(Tp * D / 2);
        u32* vp = scratch.take<u32>(Tp * D / 2);
        float* S = scratch.take<float>(BQ * Tp);
        u16* P = scratch.take<u16>(BQ * Tp);
        float* O = scratch.take<float>(BQ * D);
        memset(kl, 0, Tp * D * 2);
        pack_lanes(k + t0 * stride + kh * D, stride, T, D, kl, Tp);
        pack_pairs(v + t0 * stride + kh * D, stride, T, D, vp);
        for (long i0 = 0; i0 < T; i0 += BQ) {
            long rows = std::min(BQ, T - i0), cols = up(i0 + rows, 16), even = up(i0 + rows, 2);
            const u32* qa = (const u32*)(q + (t0 + i0) * stride + h * D);
            gemm(rows, cols, D / 2, qa, stride / 2, 1, kl, Tp, S, Tp, false);
            float inv[24];
            for (long r = 0; r < rows; r++) {
                float* x = S + r * Tp;
                long live = i0 + r + 1;
                __m512 mx = _mm512_set1_ps(-INFINITY);
                long j = 0;
                for (; j + 16 <= live; j += 16) mx = _mm512_max_ps(mx, _mm512_loadu_ps(x + j));
                __mmask16 tail = (__mmask16)((1u << (live - j)) - 1);
                if (tail) mx = _mm512_mask_max_ps(mx, tail, mx, _mm512_loadu_ps(x + j));
                float m = _mm512_reduce_max_ps(mx) * scale;
                __m512 mm = _mm512_set1_ps(m), sc = _mm512_set1_ps(scale),
                       sum = _mm512_setzero_ps();
                u16* p = P + r * Tp;
                for (j = 0; j + 16 <= live; j += 16) {
                    __m512 e = exp512(_mm512_fmsub_ps(_mm512_loadu_ps(x + j), sc, mm));
                    sum = _mm512_add_ps(sum, e);
                    _mm256_storeu_si256((__m256i*)(p + j), (__m256i)_mm512_cvtneps_pbh(e));
                }
                if (j < cols) {
                    __m512 e = _mm512_maskz_mov_ps(
                        tail, exp512(_mm512_fmsub_ps(_mm512_loadu_ps(x + j), sc, mm)));
                    sum = _mm512_add_ps(sum, e);
                    _mm256_storeu_si256((__m256i*)(p + j), (__m256i)_mm512_cvtneps_pbh(e));
                    for (j += 16; j < cols; j += 16)
                        _mm256_storeu_si256((__m256i*)(p + j), _mm256_setzero_si256());
                }
                float z = _mm512_reduce_add_ps(sum);
                inv[r] = 1.0f / z;
                lse[h * N + t0 + i0 + r] = m + logf(z);
            }
            gemm(rows, D, even / 2, (const u32*)P, Tp / 2, 1, vp, D, O, D, false);
            for (long r = 0; r < rows; r++) {
                __m512 f = _mm512_set1_ps(inv[r]);
                u16* out = o + ((t0 + i0 + r) * H + h) * D;
                for (long d = 0; d < D; d += 16)
                    _mm256_storeu_si256((__m256i*)(out + d),
                                        (__m256i)_mm512_cvtneps_pbh(
                                            _mm512_mul_ps(f, _mm512_loadu_ps(O + r * D + d))));
            }
        }
    }
}

// g, o (N, H, D) contiguous; dq, dk, dv with the stride of q, k, v; part: 2 * N * H * D floats
void attention_backward(const u16* q, const u16* k, const u16* v, const u16* o, const float* lse,
                        const u16* g, u16* dq, u16* dk, u16* dv, float* part, const int64_t* starts,
                        long nseq, long N, long H, long K, long D, long stride, float scale) {
    const long BJ = 48, G = H / K;
#pragma omp parallel for schedule(dynamic, 1)
    for (long task = 0; task < nseq * H; task++) {
        long s = task / H, h = task % H, kh = h / G;
        long t0 = starts[s], T = starts[s + 1] - t0, Tp = up(T, 64);
        scratch.need((size_t)Tp * D * (2 * 5 + 4) + Tp * 4 + BJ * Tp * (4 + 4 + 2 + 2) + 8192);
        u32* ql = scratch.take<u32>(Tp * D / 2);
        u32* gl = scratch.take<u32>(Tp * D / 2);
        u32* qp = scratch.take<u32>(Tp * D / 2);
        u32* gp = scratch.take<u32>(Tp * D / 2);
        u32* kp = scratch.take<u32>(Tp * D / 2);
        float* dqt = scratch.take<float>(Tp * D);
        float* delta = scratch.take<float>(Tp);
        float* S = scratch.take<float>(BJ * Tp);
        float* dP = scratch.take<float>(BJ * Tp);
        u16* P = scratch.take<u16>(BJ * Tp);
        u16* dS = scratch.take<u16>(BJ * Tp);
        const u16 *qs = q + t0 * stride + h * D, *gs = g + (t0 * H + h) * D,
                  *ks = k + t0 * stride + kh * D, *vs = v + t0 * stride + kh * D;
        const u16* os = o + (t0 * H + h) * D;
        memset(ql, 0, Tp * D * 2);
        memset(gl, 0, Tp * D * 2);
        memset(qp + up(T, 2) / 2 * D, 0, (Tp - up(T, 2)) * D * 2);
        memset(gp + up(T, 2) / 2 * D, 0, (Tp - up(T, 2)) * D * 2);
        pack_lanes(qs, stride, T, D, ql, Tp);
        pack_lanes(gs, H * D, T, D, gl, Tp);
        pack_pairs(qs, stride, T, D, qp);
        pack_pairs(gs, H * D, T, D, gp);
        pack_pairs(ks, stride, T, D, kp);
        memset(dqt, 0, Tp * D * 4);
        for (long t = 0; t < T; t++) {
            __m512 sum = _mm512_setzero_ps();
            for (long d = 0; d < D; d += 16) {
                __m512 a = _mm512_castsi512_ps(_mm512_slli_epi32(
                    _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(os + t * H * D + d))),
                    16));
                __m512 b = _mm512_castsi512_ps(_mm512_slli_epi32(
                    _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(gs + t * H * D + d))),
                    16));
                sum = _mm512_fmadd_ps(a, b, sum);
            }
            delta[t] = _mm512_reduce_add_ps(sum);
        }
        for (long t = T; t < Tp; t++) delta[t] = 0;
        const float* ls = lse + h * N + t0;
        float* dkp = part + ((size_t)h * N + t0) * D;
        float* dvp = part + ((size_t)(H + h) * N + t0) * D;
        __m512 sc = _mm512_set1_ps(scale);
        for (long j0 = 0; j0 < T; j0 += BJ) {
            long rows = std::min(BJ, T - j0), i0 = j0 / 16 * 16, cols = up(T, 16) - i0;
            gemm(rows, cols, D / 2, (const u32*)(ks + j0 * stride), stride / 2, 1, ql + i0, Tp,
                 S + i0, Tp, false);
            gemm(rows, cols, D / 2, (const u32*)(vs + j0 * stride), stride / 2, 1, gl + i0, Tp,
                 dP + i0, Tp, false);
            for (long r = 0; r < rows; r++) {
                long j = j0 + r;
                for (long i = i0; i < i0 + cols; i += 16) {
                    long from = j - i, to = T - i;  // live lanes: from <= lane < to
                    __mmask16 live = (__mmask16)((from <= 0    ? 0xffff
                                                  : from >= 16 ? 0
                                                               : 0xffff << from) &
                                                 (to >= 16 ? 0xffff : (1 << to) - 1));
                    __m512 l = _mm512_maskz_loadu_ps(live, ls + i);
                    __m512 p = _mm512_maskz_mov_ps(
                        live, exp512(_mm512_min_ps(
                                  _mm512_fmsub_ps(_mm512_loadu_ps(S + r * Tp + i), sc, l),
                                  _mm512_setzero_ps())));
                    __m512 ds = _mm512_mul_ps(_mm512_mul_ps(p, sc),
                                              _mm512_sub_ps(_mm512_loadu_ps(dP + r * Tp + i),
                                                            _mm512_loadu_ps(delta + i)));
                    ds = _mm512_maskz_mov_ps(live, ds);
                    _mm256_storeu_si256((__m256i*)(P + r * Tp + i), (__m256i)_mm512_cvtneps_pbh(p));
                    _mm256_storeu_si256((__m256i*)(dS + r * Tp + i),
                                        (__m256i)_mm512_cvtneps_pbh(ds));
                }
            }
            // i0 is even, hence pairs line up
            gemm(rows, D, cols / 2, (const u32*)(P + i0), Tp / 2, 1, gp + i0 / 2 * D, D,
                 dvp + j0 * D, D, false);
            gemm(rows, D, cols / 2, (const u32*)(dS + i0), Tp / 2, 1, qp + i0 / 2 * D, D,
                 dkp + j0 * D, D, false);
            // words of two keys a lane, lanes are queries: over S, which is free again
            u32* W = (u32*)S;
            for (long r = 0; r < rows; r += 2)
                for (long i = i0; i < i0 + cols; i += 16) {
                    __m512i a = _mm512_cvtepu16_epi32(
                        _mm256_loadu_si256((const __m256i*)(dS + r * Tp + i)));
                    __m512i b = r + 1 < rows ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(
                                                   (const __m256i*)(dS + (r + 1) * Tp + i)))
                                             : _mm512_setzero_si512();
                    _mm512_storeu_si512(W + r / 2 * Tp + i,
                                        _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
                }
            gemm(D, cols, (rows + 1) / 2, kp + j0 / 2 * D, 1, D, W + i0, Tp, dqt + i0, Tp, true);
        }
        for (long t = 0; t < T; t += 16) {
            alignas(64) float tmp[16 * 16];
            for (long d = 0; d < D; d += 16) {
                transpose16((const u32*)dqt + d * Tp + t, Tp, (u32*)tmp, 16);
                for (long r = 0; r < std::min(16L, T - t); r++)
                    to_bf16(tmp + r * 16, dq + (t0 + t + r) * stride + h * D + d, 16);
            }
        }
    }
#pragma omp parallel for schedule(static)
    for (long t = 0; t < N; t++)
        for (long kh = 0; kh < K; kh++)
            for (long d = 0; d < D; d += 16) {
                __m512 a = _mm512_setzero_ps(), b = a;
                for (long h = kh * G; h < (kh + 1) * G; h++) {
                    a = _mm512_add_ps(a, _mm512_loadu_ps(part + ((size_t)h * N + t) * D + d));
                    b = _mm512_add_ps(b, _mm512_loadu_ps(part + ((size_t)(H + h) * N + t) * D + d));
                }
                _mm256_storeu_si256((__m256i*)(dk + t * stride + kh * D + d),
                                    (__m256i)_mm512_cvtneps_pbh(a));
                _mm256_storeu_si256((__m256i*)(dv + t * stride + kh * D + d),
                                    (__m256i)_mm512_cvtneps_pbh(b));
            }
}
}
// -- rows
// ------------------------------------------------------------------------------------------

extern "C" {
// x (N, C) -> y = w x / rms(x); rstd (N) = 1 / rms(x)
void norm_forward(const u16* x, const u16* w, u16* y, float* rstd, long N, long C, float eps) {
#pragma omp parallel for schedule(static)
    for (long n = 0; n < N; n++) {
        const u16* xs = x + n * C;
        __m512 sum = _mm512_setzero_ps();
        for (long c = 0; c < C; c += 16) {
            __m512 a = ld(xs + c);
            sum = _mm512_fmadd_ps(a, a, sum);
        }
        rstd[n] = 1.0f / sqrtf(_mm512_reduce_add_ps(sum) / (float)C + eps);
        __m512 r = _mm512_set1_ps(rstd[n]);
        for (long c = 0; c < C; c += 16)
            st(y + n * C + c, _mm512_mul_ps(_mm512_mul_ps(ld(xs + c), r), ld(w + c)));
    }
}
// gx += d norm / dx applied to gy
void norm_backward(const u16* x, const u16* w, const float* rstd, const u16* gy, u16* gx, long N,
                   long C) {
#pragma omp parallel for schedule(static)
    for (long n = 0; n < N; n++) {
        __m512 sum = _mm512_setzero_ps(), rr = _mm512_set1_ps(rstd[n]);
        for (long c = 0; c < C; c += 16)
            sum = _mm512_fmadd_ps(_mm512_mul_ps(ld(x + n * C + c), ld(w + c)), ld(gy + n * C + c),
                                  sum);
        __m512 m = _mm512_set1_ps(_mm512_reduce_add_ps(sum) * rstd[n] * rstd[n] / (float)C);
        for (long c = 0; c < C; c += 16) {
            __m512 t = _mm512_fnmadd_ps(ld(x + n * C + c), m,
                                        _mm512_mul_ps(ld(w + c), ld(gy + n * C + c)));
            st(gx + n * C + c, _mm512_fmadd_ps(rr, t, ld(gx + n * C + c)));
        }
    }
}
// gu (N, 2F) -> h (N, F) = silu(g) u
void swiglu_forward(const u16* gu, u16* h, long N, long F) {
#pragma omp parallel for schedule(static)
    for (long n = 0; n < N; n++)
        for (long f = 0; f < F; f += 16) {
            __m512 g = ld(gu + n * 2 * F + f), u = ld(gu + n * 2 * F + F + f);
            st(h + n * F + f, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), u));
        }
}
// gu becomes its own gradient, h what swiglu_forward gave
void swiglu_backward(u16* gu, const u16* gh, u16* h, long N, long F) {
    __m512 one = _mm512_set1_ps(1.0f);
#pragma omp parallel for schedule(static)
    for (long n = 0; n < N; n++)
        for (long f = 0; f < F; f += 16) {
            u16 *gp = gu + n * 2 * F + f, *up_ = gp + F;
            __m512 g = ld(gp), u = ld(up_), d = ld(gh + n * F + f), s = sigmoid(g),
                   a = _mm512_mul_ps(g, s);
            st(h + n * F + f, _mm512_mul_ps(a, u));
            st(up_, _mm512_mul_ps(d, a));
            // silu' = s (1 + g (1 - s))
            st(gp, _mm512_mul_ps(_mm512_mul_ps(d, u),
                                 _mm512_mul_ps(s, _mm512_fmadd_ps(g, _mm512_sub_ps(one, s), one))));
        }
}
// Queries and keys (N, H + K, D), with row stride, each head by itself: x becomes w x / rms(x).
// kept (N, H + K, D) contiguous gets x as it was, rstd (N, H + K) 1 / rms(x)
void head_norm_forward(u16* qk, u16* kept, float* rstd, const u16* wq, const u16* wk, long N,
                       long H, long K, long D, long stride, float eps) {
#pragma omp parallel for schedule(static)
    for (long n = 0; n < N; n++)
        for (long h = 0; h < H + K; h++) {
            u16 *x = qk + n * stride + h * D, *old = kept + (n * (H + K) + h) * D;
            const u16* w = h < H ? wq : wk;
            __m512 sum = _mm512_setzero_ps();
            for (long d = 0; d < D; d += 16) {
                __m512 a = ld(x + d);
                sum = _mm512_fmadd_ps(a, a, sum);
            }
            float r = 1.0f / sqrtf(_mm512_reduce_add_ps(sum) / (float)D + eps);
            rstd[n * (H + K) + h] = r;
            memcpy(old, x, D * 2);
            for (long d = 0; d < D; d += 16)
                st(x + d, _mm512_mul_ps(_mm512_mul_ps(ld(x + d), _mm512_set1_ps(r)), ld(w + d)));
        }
}
// g (N, H + K, D), with row stride, becomes the gradient of what head_norm_forward was given
void head_norm_backward(const u16* kept, const float* rstd, const u16* wq, const u16* wk, u16* g,
                        long N, long H, long K, long D, long stride) {
#pragma omp parallel for schedule(static)
    for (long n = 0; n < N; n++)
        for (long h = 0; h < H + K; h++) {
            u16* gs = g + n * stride + h * D;
            const u16 *x = kept + (n * (H + K) + h) * D, *w = h < H ? wq : wk;
            float r = rstd[n * (H + K) + h];
            __m512 sum = _mm512_setzero_ps(), rr = _mm512_set1_ps(r);
            for (long d = 0; d < D; d += 16)
                sum = _mm512_fmadd_ps(_mm512_mul_ps(ld(x + d), ld(w + d)), ld(gs + d), sum);
            __m512 m = _mm512_set1_ps(_mm512_reduce_add_ps(sum) * r * r / (float)D);
            for (long d = 0; d < D; d += 16) {
                __m512 wg = _mm512_mul_ps(ld(w + d), ld(gs + d));
                st(gs + d, _mm512_mul_ps(rr, _mm512_fnmadd_ps(ld(x + d), m, wg)));
            }
        }
}
// z (N, V) logits; index (N, K) and share (N, K) what they should predict. losses (N) = log sum exp z
// - sum_k share z[index]; with `gradient`, z becomes softmax(z) - shares
void cross_entropy(u16* z, const int64_t* index, const float* share, float* losses, long N, long V,
                   long K, long gradient) {
#pragma omp parallel for schedule(static)
    for (long n = 0; n < N; n++) {
        u16* x = z + n * V;
        const int64_t* at = index + n * K;
        const float* part = share + n * K;
        scratch.need((size_t)up(V, 16) * 4);
        float* e = scratch.take<float>(up(V, 16));
        float wanted = 0;
        for (long k = 0; k < K; k++) wanted += part[k] * one(x[at[k]]);
        const __m512 low = _mm512_set1_ps(-INFINITY);
        __m512 top = low;
        for (long v = 0; v < V; v += 16) {
            __mmask16 live = lanes(V - v);
            __m512 a = _mm512_mask_mov_ps(low, live, ld(x + v, live));
            _mm512_storeu_ps(e + v, a);
            top = _mm512_max_ps(top, a);
        }
        float m = _mm512_reduce_max_ps(top);
        __m512 mm = _mm512_set1_ps(m), sum = _mm512_setzero_ps(), more = sum;
        for (long v = 0; v < V; v += 16) {
            __m512 a = exp512(_mm512_sub_ps(_mm512_loadu_ps(e + v), mm));
            a = _mm512_maskz_mov_ps(lanes(V - v), a);
            _mm512_storeu_ps(e + v, a);
            // two sums: few large ones and many small ones lose less
            (v & 16 ? more : sum) = _mm512_add_ps(v & 16 ? more : sum, a);
        }
        float total = _mm512_reduce_add_ps(sum) + _mm512_reduce_add_ps(more);
        losses[n] = m + logf(total) - wanted;
        if (!gradient) continue;
        for (long k = 0; k < K; k++) e[at[k]] -= part[k] * total;
        __m512 inverse = _mm512_set1_ps(1.0f / total);
        for (long v = 0; v < V; v += 16)
            st(x + v, _mm512_mul_ps(_mm512_loadu_ps(e + v), inverse), lanes(V - v));
    }
}
// x (N, heads, D) with row stride; cos, sin (N, D/2) float32, sign -1 turns back; in place
void rotate(u16* x, long stride, const float* cos_, const float* sin_, long N, long heads, long D,
            float sign) {
    __m512 sg = _mm512_set1_ps(sign);
#pragma omp parallel for schedule(static)
    for (long n = 0; n < N; n++)
        for (long h = 0; h < heads; h++) {
            u16* p = x + n * stride + h * D;
            for (long d = 0; d < D / 2; d += 16) {
                __m512 a = ld(p + d), b = ld(p + d + D / 2),
                       c = _mm512_loadu_ps(cos_ + n * D / 2 + d),
                       s = _mm512_mul_ps(sg, _mm512_loadu_ps(sin_ + n * D / 2 + d));
                st(p + d, _mm512_fnmadd_ps(b, s, _mm512_mul_ps(a, c)));
                st(p + d + D / 2, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)));
            }
        }
}
}
