// Vector functions with AVX512F, and how each level holds activations.
//
// Numbers are rounded to bf16 where the models of transformers round. A level with instructions for
// bf16 holds activations so; the level without holds the rounded numbers in fp32, because it would
// have to widen them for each product.
//
// NATIVE_LEVEL names the level's own namespace: what is compiled for one CPU is called on no other.
#pragma once

// Here and not on the command line, so that interface.cpp runs on any x86.
#if NATIVE_BF16 && !defined(NATIVE_EMULATE)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,bmi2")
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,bmi2")
#endif

#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "step.h"

namespace native {
namespace NATIVE_LEVEL {

#if NATIVE_BF16
using Value = bf16;
#else
using Value = float;
#endif

inline __m512 widen(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

// To the nearest bf16, to even between two; and back, where the reference stores a result between
// two operations.
#if NATIVE_BF16 && !defined(NATIVE_EMULATE)
inline __m256i narrow(__m512 values) { return (__m256i)_mm512_cvtneps_pbh(values); }

inline __m512 rounded(__m512 values) { return widen(narrow(values)); }
#else
inline __m512 rounded(__m512 values) {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(even, _mm512_set1_epi32(0x7FFF));
  // What is no number stays none.
  const __mmask16 none = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
  const __m512i sum = _mm512_mask_or_epi32(_mm512_add_epi32(bits, up), none, bits,
                                           _mm512_set1_epi32(0x00400000));
  return _mm512_castsi512_ps(_mm512_and_si512(sum, _mm512_set1_epi32(0xFFFF0000)));
}

inline __m256i narrow(__m512 values) {
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(rounded(values)), 16));
}
#endif

inline __m512 load16(const bf16* from) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline void store16(bf16* to, __m512 values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(values));
}

// 8 numbers of one place, and 8 of another behind them.
inline __m512 load_halves(const bf16* low, const bf16* high) {
  return widen(_mm256_set_m128i(_mm_loadu_si128(reinterpret_cast<const __m128i*>(high)),
                                _mm_loadu_si128(reinterpret_cast<const __m128i*>(low))));
}

inline void store_halves(bf16* low, bf16* high, __m512 values) {
  const __m256i both = narrow(values);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm256_castsi256_si128(both));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm256_extracti128_si256(both, 1));
}

#if !NATIVE_BF16
inline __m512 load_halves(const float* low, const float* high) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(low)), _mm256_loadu_ps(high), 1);
}

inline void store_halves(float* low, float* high, __m512 values) {
  const __m512 both = rounded(values);
  _mm256_storeu_ps(low, _mm512_castps512_ps256(both));
  _mm256_storeu_ps(high, _mm512_extractf32x8_ps(both, 1));
}

inline __m512 load16(const float* from) { return _mm512_loadu_ps(from); }

inline void store16(float* to, __m512 values) { _mm512_storeu_ps(to, rounded(values)); }
#endif

// 32 numbers, one after the other.
inline void store32(Value* to, __m512 first, __m512 second) {
#if NATIVE_BF16 && !defined(NATIVE_EMULATE)
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(second, first));
#else
  store16(to, first);
  store16(to + 16, second);
#endif
}

inline float to_float(bf16 value) {
  uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

// A number that bf16 holds.
inline bf16 to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<bf16>(bits >> 16);
}

inline Value to_value(bf16 value) {
#if NATIVE_BF16
  return value;
#else
  return to_float(value);
#endif
}

inline bf16 from_value(Value value) {
#if NATIVE_BF16
  return value;
#else
  return to_bf16(value);
#endif
}

// 2^x to about 1e-7; NaN of what is not finite.
inline __m512 power_of_two(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(x, n);
  // The polynomial of degree 5 with the least relative error between -1/2 and 1/2.
  __m512 p = _mm512_set1_ps(1.32764720e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.67554150e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.55071328e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.40221197e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.93146967e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.00000007f));
  return _mm512_scalef_ps(p, n);
}

constexpr float kLog2E = 1.44269504f;

// e^x for what is rounded to bf16 afterwards; NaN stays NaN.
inline __m512 exponential(__m512 x) {
  // The second operand of max and min is what a NaN in the first or second gives.
  x = _mm512_max_ps(_mm512_set1_ps(-100.0f), x);
  x = _mm512_min_ps(_mm512_set1_ps(88.5f), x);
  return power_of_two(_mm512_mul_ps(x, _mm512_set1_ps(kLog2E)));
}

// Where the first of the largest of `count` numbers is; -1 where one is NaN, or the largest is
// infinite.
inline int32_t argmax(const float* values, int count) {
  const __m512 lowest = _mm512_set1_ps(-INFINITY);
  __m512 best = lowest;
  __m512i at = _mm512_setzero_si512(), index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
                                                                 11, 12, 13, 14, 15);
  __mmask16 none = 0;
  for (int k = 0; k < count; k += 16) {
    const auto inside = static_cast<__mmask16>(k + 16 <= count ? 0xFFFF : (1 << (count - k)) - 1);
    const __m512 x = _mm512_mask_loadu_ps(lowest, inside, values + k);
    none |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __mmask16 more = _mm512_cmp_ps_mask(x, best, _CMP_GT_OQ);
    best = _mm512_mask_mov_ps(best, more, x);
    at = _mm512_mask_mov_epi32(at, more, index);
    index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
  }
  const float top = _mm512_reduce_max_ps(best);
  if (none != 0 || !std::isfinite(top)) return -1;
  const __mmask16 equal = _mm512_cmp_ps_mask(best, _mm512_set1_ps(top), _CMP_EQ_OQ);
  return _mm512_mask_reduce_min_epi32(equal, at);
}

}  // namespace NATIVE_LEVEL
}  // namespace native
