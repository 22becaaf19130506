// Products of weights and activations in int8, for AVX512-VNNI.
//
// 32 inputs of an output share a scale, and so do 32 activations of a row, as in GGUF's Q8_0. A
// panel is its scales in bf16, [K/32][16], and after them the weights plus 128 as unsigned bytes,
// [K/4][16][4], because VPDPBUSD multiplies unsigned by signed ones. What the 128 add is taken off
// where a block's sum starts: 128 x the sum of its activations.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "panels.h"

namespace native {
namespace NATIVE_LEVEL {

#pragma GCC push_options
#pragma GCC target("avx512vnni")

constexpr int kBlock = 32;  // inputs with one scale

// Rows of activations in int8.
struct Bytes {
  struct Rows {
    int8_t* values;
    float* scales;     // of a block
    int32_t* offsets;  // -128 x the sum of a block
    size_t inputs;     // distance of two rows, in values
  };

  // Rows of activations in int8; made before each product.
  class Buffer {
   public:
    void make(int rows, int width) {
      values_.resize(static_cast<size_t>(rows) * width);
      scales_.resize(values_.size() / kBlock);
      offsets_.resize(values_.size() / kBlock);
    }
    Rows rows(int, int inputs) {
      return {values_.data(), scales_.data(), offsets_.data(), static_cast<size_t>(inputs)};
    }

   private:
    std::vector<int8_t> values_;
    std::vector<float> scales_;
    std::vector<int32_t> offsets_;
  };

  static constexpr int kRows = 6;
  static constexpr int kWide = 6;
  static constexpr int kTogether = 1;

  static int panels_of(int rows) { return rows <= 2 ? 6 : rows <= 3 ? 4 : 2; }

  static int blocks(int) { return 1; }

  static size_t scale_bytes(int inputs) {
    return (static_cast<size_t>(inputs) / kBlock * kPanel * sizeof(bf16) + 63) / 64 * 64;
  }

  static size_t stride(int inputs) {
    return scale_bytes(inputs) + static_cast<size_t>(inputs) * kPanel;
  }

  static void prepare(int) {}
  static void finish() {}

  // Bring a row of activations into int8.
  static void convert(const Value* from, const Rows& to, int row, int inputs) {
    int8_t* values = to.values + row * to.inputs;
    for (int block = 0; block < inputs / kBlock; ++block, from += kBlock, values += kBlock) {
      const __m512 low = load16(from), high = load16(from + 16);
      const float most =
          _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
      const __m512 factor = _mm512_set1_ps(most > 0.0f ? 127.0f / most : 0.0f);
      const __m512i one = _mm512_cvtps_epi32(_mm512_mul_ps(low, factor));
      const __m512i two = _mm512_cvtps_epi32(_mm512_mul_ps(high, factor));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(values), _mm512_cvtsepi32_epi8(one));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(values + 16), _mm512_cvtsepi32_epi8(two));
      const size_t at = row * (to.inputs / kBlock) + block;
      // A maximum skips what is no number, and a product of the scale must not.
      const float sum = _mm512_reduce_add_ps(_mm512_add_ps(low, high));
      to.scales[at] = most / 127.0f + 0.0f * sum;
      to.offsets[at] = -128 * _mm512_reduce_add_epi32(_mm512_add_epi32(one, two));
    }
  }

  // Bring one output's weights into its lane of a panel.
  static void pack(const bf16* from, char* panel, int lane, int inputs) {
    auto* scales = reinterpret_cast<bf16*>(panel) + lane;
    auto* values = reinterpret_cast<uint8_t*>(panel + scale_bytes(inputs)) + 4 * lane;
    for (int block = 0; block < inputs / kBlock; ++block, from += kBlock) {
      float most = 0.0f;
      for (int k = 0; k < kBlock; ++k) most = std::max(most, std::fabs(to_float(from[k])));
      // Rounded up to a number that bf16 holds, so that nothing is above 127.
      const bf16 scale = most > 0.0f ? static_cast<bf16>(to_bf16(most / 127.0f) + 1) : 0;
      const float factor = most > 0.0f ? 1.0f / to_float(scale) : 0.0f;
      scales[block * kPanel] = scale;
      for (int k = 0; k < kBlock; ++k) {
        const long value = std::lrint(to_float(from[k]) * factor);
        values[(block * kBlock + k) / 4 * 4 * kPanel + k % 4] = static_cast<uint8_t>(value + 128);
      }
    }
  }

  // One output's weights, as they are multiplied.
  static void unpack(const char* panel, int lane, int inputs, Value* to) {
    const auto* scales = reinterpret_cast<const bf16*>(panel) + lane;
    const auto* values = reinterpret_cast<const uint8_t*>(panel + scale_bytes(inputs)) + 4 * lane;
    alignas(64) float block[kBlock];
    for (int first = 0; first < inputs; first += kBlock) {
      const float scale = to_float(scales[first / kBlock * kPanel]);
      for (int k = 0; k < kBlock; ++k)
        block[k] = scale * (values[(first + k) / 4 * 4 * kPanel + k % 4] - 128);
      for (int k = 0; k < kBlock; k += 16) store16(to + first + k, _mm512_load_ps(block + k));
    }
  }

  static void compute(const Rows& a, int row, int rows, int panels, const char* w, size_t ldw,
                      int inputs, int, float* out, size_t ldo, const char* next, size_t ldn) {
    using Tile = void (*)(const Rows&, int, const char*, size_t, int, float*, size_t, const char*,
                          size_t);
#define NATIVE_ONE(R, N) tile<R, N>
    static const Tile table[kRows][kWide] = {
        NATIVE_BROAD(NATIVE_ONE, 1),  NATIVE_BROAD(NATIVE_ONE, 2),  NATIVE_MIDDLE(NATIVE_ONE, 3),
        NATIVE_NARROW(NATIVE_ONE, 4), NATIVE_NARROW(NATIVE_ONE, 5), NATIVE_NARROW(NATIVE_ONE, 6)};
#undef NATIVE_ONE
    table[rows - 1][panels - 1](a, row, w, ldw, inputs, out, ldo, next, ldn);
  }

 private:
  template <int MR, int NB>
  static void tile(const Rows& a, int row, const char* w, size_t ldw, int inputs, float* out,
                   size_t ldo, const char* next, size_t ldn) {
    const int blocks = inputs / kBlock;
    const size_t start = scale_bytes(inputs), per_row = a.inputs / kBlock;
    const int8_t* values = a.values + row * a.inputs;
    const float* scales = a.scales + row * per_row;
    const int32_t* offsets = a.offsets + row * per_row;
    __m512 sums[MR][NB];
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 6
      for (int n = 0; n < NB; ++n) sums[r][n] = _mm512_setzero_ps();
    for (int block = 0; block < blocks; ++block) {
      __m512i parts[MR][NB];
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 6
        for (int n = 0; n < NB; ++n) parts[r][n] = _mm512_set1_epi32(offsets[r * per_row + block]);
      const char* from = w + start + static_cast<size_t>(block) * kBlock * kPanel;
      const char* soon = next + start + static_cast<size_t>(block) * kBlock * kPanel;
#pragma GCC unroll 8
      for (int k = 0; k < kBlock / 4; ++k) {
        __m512i weights[NB];
#pragma GCC unroll 6
        for (int n = 0; n < NB; ++n) {
          weights[n] = _mm512_load_si512(from + n * ldw + k * 64);
          _mm_prefetch(soon + n * ldn + k * 64, _MM_HINT_T1);
        }
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) {
          int32_t four;
          std::memcpy(&four, values + r * a.inputs + block * kBlock + 4 * k, 4);
          const __m512i inputs4 = _mm512_set1_epi32(four);
#pragma GCC unroll 6
          for (int n = 0; n < NB; ++n)
            parts[r][n] = _mm512_dpbusd_epi32(parts[r][n], weights[n], inputs4);
        }
      }
#pragma GCC unroll 6
      for (int n = 0; n < NB; ++n) {
        const __m512 scale =
            load16(reinterpret_cast<const bf16*>(w + n * ldw) + static_cast<size_t>(block) * kPanel);
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r)
          sums[r][n] = _mm512_fmadd_ps(
              _mm512_cvtepi32_ps(parts[r][n]),
              _mm512_mul_ps(scale, _mm512_set1_ps(scales[r * per_row + block])), sums[r][n]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 6
      for (int n = 0; n < NB; ++n) _mm512_storeu_ps(out + r * ldo + n * kPanel, sums[r][n]);
  }
};

#pragma GCC pop_options

}  // namespace NATIVE_LEVEL
}  // namespace native
