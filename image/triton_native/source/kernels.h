// Matrix products and vector functions in bf16 with fp32 sums, for AVX512-BF16.
//
// A weight of N outputs and K inputs lies in panels of 16 outputs: [N/16][K/2][16][2]. One vector
// of a panel holds two inputs of all 16 outputs, which is what VDPBF16PS multiplies at once. Each
// output is one chain of sums in the order of the inputs, however many rows are computed together:
// a row's result never depends on the rows beside it.
#pragma once

// Here and not on the command line, so that cpu.cpp runs on any x86.
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,bmi2")

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace native {

using bf16 = uint16_t;

constexpr int kPanel = 16;     // outputs of one panel
constexpr int kRows = 12;      // most rows of one tile
constexpr int kWide = 6;       // most panels of one tile

inline __m512 widen(__m256i values) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16));
}

inline __m512 load16(const bf16* from) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline __m256i narrow(__m512 values) { return (__m256i)_mm512_cvtneps_pbh(values); }

inline void store16(bf16* to, __m512 values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(values));
}

// To bf16 and back, where the reference stores a result between two operations.
inline __m512 rounded(__m512 values) { return widen(narrow(values)); }

inline float to_float(bf16 value) {
  uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

// e^x to about 1e-7; NaN stays NaN.
inline __m512 exponential(__m512 x) {
  // The second operand of max and min is what a NaN in the first or second gives.
  x = _mm512_max_ps(_mm512_set1_ps(-100.0f), x);
  x = _mm512_min_ps(_mm512_set1_ps(88.5f), x);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
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

// out[MR][NB * 16] (+)= a[MR][2 * pairs] x NB panels. `next` is what will be read soon, `ldn` the
// distance of its NB streams.
template <int MR, int NB, bool ADD>
void tile(const bf16* a, size_t lda, const bf16* w, size_t ldw, int pairs, float* out, size_t ldo,
          const bf16* next, size_t ldn) {
  __m512 sums[MR][NB];
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 6
    for (int n = 0; n < NB; ++n)
      sums[r][n] = ADD ? _mm512_loadu_ps(out + r * ldo + n * kPanel) : _mm512_setzero_ps();
  for (int k = 0; k < pairs; ++k) {
    __m512bh weights[NB];
#pragma GCC unroll 6
    for (int n = 0; n < NB; ++n) {
      weights[n] = (__m512bh)_mm512_load_si512(w + n * ldw + static_cast<size_t>(k) * 32);
      if (!ADD)
        _mm_prefetch(reinterpret_cast<const char*>(next + n * ldn + static_cast<size_t>(k) * 32),
                     _MM_HINT_T1);
    }
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r) {
      int32_t two;
      std::memcpy(&two, a + r * lda + 2 * k, 4);
      const __m512bh inputs = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 6
      for (int n = 0; n < NB; ++n) sums[r][n] = _mm512_dpbf16_ps(sums[r][n], inputs, weights[n]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 6
    for (int n = 0; n < NB; ++n) _mm512_storeu_ps(out + r * ldo + n * kPanel, sums[r][n]);
}

using Tile = void (*)(const bf16*, size_t, const bf16*, size_t, int, float*, size_t, const bf16*,
                      size_t);

// Panels that a tile of so many rows takes at once: what the 32 registers hold.
inline int panels_of(int rows) { return rows <= 3 ? 6 : rows <= 6 ? 4 : 2; }

template <bool ADD>
Tile choose_tile(int rows, int panels) {
#define NATIVE_NARROW(R) {tile<R, 1, ADD>, tile<R, 2, ADD>, nullptr, nullptr, nullptr, nullptr}
#define NATIVE_MIDDLE(R) {tile<R, 1, ADD>, tile<R, 2, ADD>, nullptr, tile<R, 4, ADD>, nullptr, nullptr}
#define NATIVE_BROAD(R) \
  {tile<R, 1, ADD>, tile<R, 2, ADD>, nullptr, tile<R, 4, ADD>, nullptr, tile<R, 6, ADD>}
  static const Tile table[kRows][kWide] = {
      NATIVE_BROAD(1),  NATIVE_BROAD(2),  NATIVE_BROAD(3),  NATIVE_MIDDLE(4),
      NATIVE_MIDDLE(5), NATIVE_MIDDLE(6), NATIVE_NARROW(7), NATIVE_NARROW(8),
      NATIVE_NARROW(9), NATIVE_NARROW(10), NATIVE_NARROW(11), NATIVE_NARROW(12)};
#undef NATIVE_NARROW
#undef NATIVE_MIDDLE
#undef NATIVE_BROAD
  return table[rows - 1][panels - 1];
}

// The largest number of panels with a tile of their own, for what is left of a range.
inline int fitting(int wanted, int left) {
  const int most = wanted < left ? wanted : left;
  return most >= 6 ? 6 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

struct Panels {
  const bf16* data = nullptr;
  int count = 0;  // panels
  int inputs = 0;
  size_t stride() const { return static_cast<size_t>(inputs) * kPanel; }
};

// The panels [from, to) of a product for all rows; `take(row, panel, rows, panels, sums, ld)` gets
// each finished tile.
template <class Take>
void multiply(const bf16* a, size_t lda, int rows, const Panels& w, int from, int to, Take&& take) {
  alignas(64) float sums[kRows * kWide * kPanel];
  const int tiles = (rows + kRows - 1) / kRows;
  const int tall = (rows + tiles - 1) / tiles;
  const int wide = panels_of(tall);
  const int pairs = w.inputs / 2;
  const size_t stride = w.stride();
  for (int panel = from; panel < to;) {
    const int panels = fitting(wide, to - panel);
    const bf16* here = w.data + panel * stride;
    const bool more = panel + 2 * panels <= to;
    int row = 0;
    for (int t = 0; t < tiles; ++t) {
      const int height = rows / tiles + (t < rows % tiles);
      // The next panels come from memory while these are multiplied: all of them during the only
      // tile, else a half during each of the first two.
      const bf16* next = here;
      size_t ldn = 0;
      if (more && tiles == 1) {
        next = here + panels * stride;
        ldn = stride;
      } else if (more && t < 2 && t < panels) {
        next = here + (panels + t) * stride;
      }
      choose_tile<false>(height, panels)(a + row * lda, lda, here, stride, pairs, sums,
                                         panels * kPanel, next, ldn);
      take(row, panel, height, panels, sums, panels * kPanel);
      row += height;
    }
    panel += panels;
  }
}

}  // namespace native
