// AVX-512 BF16 building blocks: small products, packing, rows of bfloat16, scratch memory.
#pragma once
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
using u16 = uint16_t;
using u32 = uint32_t;
#define INL static inline __attribute__((always_inline))

INL __m512 exp512(__m512 x) {  // e^x, relative error 2e-7; x <= 0 here
    const __m512 log2e = _mm512_set1_ps(1.44269504f);
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, log2e), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

// C[MR][NV*16] (+)= sum_k A[m*ars + k*aks] . B[k*ldb + n]; a word holds two neighbours of the sum
template <int MR, int NV>
INL void mk(const u32* A, long ars, long aks, const u32* B, long ldb, long kp, float* C, long ldc,
            bool acc) {
    __m512 c[MR][NV];
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NV; n++)
            c[m][n] = acc ? _mm512_loadu_ps(C + m * ldc + n * 16) : _mm512_setzero_ps();
    for (long k = 0; k < kp; k++) {
        __m512i b[NV];
#pragma GCC unroll 8
        for (int n = 0; n < NV; n++) b[n] = _mm512_loadu_si512(B + k * ldb + n * 16);
#pragma GCC unroll 8
        for (int m = 0; m < MR; m++) {
            __m512i a = _mm512_set1_epi32((int)A[m * ars + k * aks]);
#pragma GCC unroll 8
            for (int n = 0; n < NV; n++)
                c[m][n] = _mm512_dpbf16_ps(c[m][n], (__m512bh)a, (__m512bh)b[n]);
        }
    }
    for (int m = 0; m < MR; m++)
        for (int n = 0; n < NV; n++) _mm512_storeu_ps(C + m * ldc + n * 16, c[m][n]);
}
template <int NV>
INL void mkrows(int mr, const u32* A, long ars, long aks, const u32* B, long ldb, long kp, float* C,
                long ldc, bool acc) {
    switch (mr) {
        case 1:
            mk<1, NV>(A, ars, aks, B, ldb, kp, C, ldc, acc);
            break;
        case 2:
            mk<2, NV>(A, ars, aks, B, ldb, kp, C, ldc, acc);
            break;
        case 3:
            mk<3, NV>(A, ars, aks, B, ldb, kp, C, ldc, acc);
            break;
        case 4:
            mk<4, NV>(A, ars, aks, B, ldb, kp, C, ldc, acc);
            break;
        case 5:
            mk<5, NV>(A, ars, aks, B, ldb, kp, C, ldc, acc);
            break;
        default:
            mk<6, NV>(A, ars, aks, B, ldb, kp, C, ldc, acc);
            break;
    }
}
// rows x cols, cols a multiple of 16
static void gemm(long rows, long cols, long kp, const u32* A, long ars, long aks, const u32* B,
                 long ldb, float* C, long ldc, bool acc) {
    for (long n = 0; n < cols;) {
        long left = (cols - n) / 16;
        int nv = left >= 4 ? 4 : (int)left;
        for (long m = 0; m < rows; m += 6) {
            int mr = (int)std::min(6L, rows - m);
            const u32* a = A + m * ars;
            float* c = C + m * ldc + n;
            switch (nv) {
                case 1:
                    mkrows<1>(mr, a, ars, aks, B + n, ldb, kp, c, ldc, acc);
                    break;
                case 2:
                    mkrows<2>(mr, a, ars, aks, B + n, ldb, kp, c, ldc, acc);
                    break;
                case 3:
                    mkrows<3>(mr, a, ars, aks, B + n, ldb, kp, c, ldc, acc);
                    break;
                default:
                    mkrows<4>(mr, a, ars, aks, B + n, ldb, kp, c, ldc, acc);
                    break;
            }
        }
        n += nv * 16;
    }
}

// 16 rows of 16 words -> transposed
INL void transpose16(const u32* src, long ss, u32* dst, long ds) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(src + i * ss);
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        __m512i lo = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88),
                hi = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        _mm512_storeu_si512(dst + i * ds, lo);
        _mm512_storeu_si512(dst + (i + 8) * ds, hi);
    }
}
// x rows (T, D) of bfloat16 with row stride `st` -> words[d/2][Tp]: lanes are rows
static void pack_lanes(const u16* x, long st, long T, long D, u32* out, long Tp) {
    alignas(64) u32 tmp[16 * 16];
    for (long t = 0; t < T; t += 16)
        for (long w = 0; w < D / 2; w += 16) {
            long rows = std::min(16L, T - t);
            if (rows == 16 && st % 2 == 0) {
                transpose16((const u32*)(x + t * st) + w, st / 2, out + w * Tp + t, Tp);
                continue;
            }
            memset(tmp, 0, sizeof tmp);
            for (long r = 0; r < rows; r++) memcpy(tmp + r * 16, x + (t + r) * st + 2 * w, 64);
            transpose16(tmp, 16, out + w * Tp + t, Tp);
        }
}
// x rows -> words[t/2][D]: a word holds rows t and t+1
static void pack_pairs(const u16* x, long st, long T, long D, u32* out) {
    for (long t = 0; t < T; t += 2)
        for (long d = 0; d < D; d += 16) {
            __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(x + t * st + d)));
            __m512i b = t + 1 < T ? _mm512_cvtepu16_epi32(
                                        _mm256_loadu_si256((const __m256i*)(x + (t + 1) * st + d)))
                                  : _mm512_setzero_si512();
            _mm512_storeu_si512(out + (t / 2) * D + d,
                                _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
        }
}
INL void to_bf16(const float* src, u16* dst, long n) {  // n a multiple of 16
    for (long i = 0; i < n; i += 16)
        _mm256_storeu_si256((__m256i*)(dst + i),
                            (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(src + i)));
}
INL long up(long x, long m) { return (x + m - 1) / m * m; }
struct Scratch {
    char* p;
    size_t n, used;
    Scratch() : p(nullptr), n(0), used(0) {}
    ~Scratch() { free(p); }
    void need(size_t b) {
        used = 0;
        if (b <= n) return;
        free(p);
        n = b;
        p = (char*)aligned_alloc(64, up(b, 64));
        if (!p) abort();
    }
    template <class T>
    T* take(size_t count) {
        T* r = (T*)(p + used);
        used += up(count * sizeof(T), 64);
        return r;
    }
};
static thread_local Scratch scratch;  // a thread's own, kept from call to call

// -- rows
INL __m512 ld(const u16* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
INL void st(u16* p, __m512 x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x)); }
INL __mmask16 lanes(long left) { return left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1); }
INL __m512 ld(const u16* p, __mmask16 live) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(live, p)), 16));
}
INL void st(u16* p, __m512 x, __mmask16 live) {
    _mm256_mask_storeu_epi16(p, live, (__m256i)_mm512_cvtneps_pbh(x));
}
INL float one(u16 x) {
    u32 bits = (u32)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}
INL __m512 sigmoid(__m512 x) {
    // 1 / (1 + e^-|x|), mirrored: no overflow
    __m512 e = exp512(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_abs_ps(x)));
    __m512 one = _mm512_set1_ps(1.0f), r = _mm512_div_ps(one, _mm512_add_ps(one, e));
    return _mm512_mask_sub_ps(r, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), one, r);
}
