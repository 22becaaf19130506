// Products of bf16 weights and activations as whole numbers of 16 bits, for AVX512-VNNI.
//
// Without instructions for bf16, a CPU multiplies 16 numbers in fp32 at a time, and 32 in int16. So
// blocks of up to 192 inputs, of an output and of a row, are scaled to whole numbers, as far up as
// their sums of products stay exact in 32 bits: no such sum is above the product of the two norms
// (Cauchy-Schwarz), so each norm may be the root of 2^31. The step between two numbers is then at
// most a 3,300th of a block's root mean square, unless a few are far above it, and the error below
// that of bf16, which is up to a 512th of each number. Activations far above the others would leave
// those no digits: what rounding took off such a block is multiplied, too, which is 27 bits in all.
//
// A panel is its scales in fp32, [blocks][16], and after them the weights, [K/2][16][2].
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "panels.h"

namespace native {
namespace NATIVE_LEVEL {

#pragma GCC push_options
#ifndef NATIVE_EMULATE
#pragma GCC target("avx512vnni")
#endif

struct Words {
  // Values of the rows of a tile lie together, [K/2][rows of the tile][2]; rests do not.
  struct Rows {
    int16_t *values, *rests;          // a rest is what is left of a value
    float *scales, *scales_of_rests;  // of a block; 0 where no rests are multiplied
    int rows;
  };

  // Rows of activations in int16; made before each product.
  class Buffer {
   public:
    void make(int rows, int width) {
      for (auto* values : {&values_, &rests_}) values->resize(static_cast<size_t>(rows) * width);
      for (auto* scales : {&scales_, &scales_of_rests_})
        scales->resize(static_cast<size_t>(rows) * blocks(width));
    }
    Rows rows(int rows, int) {
      return {values_.data(), rests_.data(), scales_.data(), scales_of_rests_.data(), rows};
    }

   private:
    std::vector<int16_t> values_, rests_;
    std::vector<float> scales_, scales_of_rests_;
  };

  static constexpr int kRows = Vectors::kRows;
  static constexpr int kWide = Vectors::kWide;
  static constexpr int kTogether = 8;

  static int panels_of(int rows) { return rows <= 3 ? 6 : rows <= 6 ? 4 : 2; }
  static int blocks(int inputs) { return (inputs + kDepth - 1) / kDepth; }
  static size_t stride(int inputs) {
    return scale_bytes(inputs) + inputs * kPanel * sizeof(int16_t);
  }
  static void prepare(int) {}
  static void finish() {}

  // Bring a row of activations into int16.
  static void convert(const Value* from, const Rows& to, int row, int inputs) {
    const Cut cut(to.rows, kRows);
    const int tile = cut.tile_of(row), first = cut.first(tile), height = cut.height(tile);
    alignas(64) int16_t words[kDepth];
    for (int block = 0; block < blocks(inputs); ++block) {
      const int start = block * depth(inputs);
      const int count = std::min(depth(inputs), inputs - start);
      const size_t scale = static_cast<size_t>(row) * blocks(inputs) + block;
      to.scales[scale] = to_words(from + start, words, count);
      int16_t* values = to.values + static_cast<size_t>(first) * inputs +
                        static_cast<size_t>(start) * height + 2 * (row - first);
      for (int k = 0; k < count; k += 2)
        std::memcpy(values + static_cast<size_t>(k) * height, words + k, 2 * sizeof(int16_t));
      to.scales_of_rests[scale] = 0.0f;
      if (coarse(words, count)) {
        find_rests(from + start, words, to.rests + static_cast<size_t>(row) * inputs + start, count,
                   to.scales[scale]);
        to.scales_of_rests[scale] = to.scales[scale] / kFiner;
      }
    }
  }

  // Bring one output's weights into its lane of a panel.
  static void pack(const bf16* from, char* panel, int lane, int inputs) {
    alignas(64) int16_t block[kDepth];
    float* scales = reinterpret_cast<float*>(panel) + lane;
    char* values = panel + scale_bytes(inputs) + 2 * lane * sizeof(int16_t);
    for (int start = 0; start < inputs; start += depth(inputs), scales += kPanel) {
      const int count = std::min(depth(inputs), inputs - start);
      *scales = to_words(from + start, block, count);
      for (int k = 0; k < count; k += 2, values += 2 * kPanel * sizeof(int16_t))
        std::memcpy(values, block + k, 2 * sizeof(int16_t));
    }
  }

  // One output's weights, as they are multiplied.
  static void unpack(const char* panel, int lane, int inputs, Value* to) {
    const float* scales = reinterpret_cast<const float*>(panel) + lane;
    const auto* values = reinterpret_cast<const int16_t*>(panel + scale_bytes(inputs)) + 2 * lane;
    alignas(64) float part[16];
    for (int k = 0; k < inputs; k += 16) {
      const float scale = scales[k / depth(inputs) * kPanel];
      for (int i = 0; i < 16; ++i)
        part[i] = scale * values[static_cast<size_t>(k + i) / 2 * 2 * kPanel + i % 2];
      store16(to + k, _mm512_load_ps(part));
    }
  }

  // The products of one block of inputs; those of the first begin the sums, others add to them.
  static void compute(const Rows& a, int row, int rows, int panels, const char* w, size_t ldw,
                      int inputs, int block, float* out, size_t ldo, const char* next,
                      size_t ldn) {
    using Tile = void (*)(const Operands&);
#define NATIVE_ONE(R, N) tile<R, N>
    static const Tile table[kRows][kWide] = NATIVE_TABLE(NATIVE_ONE);
#undef NATIVE_ONE
    const int start = block * depth(inputs);
    const size_t at = scale_bytes(inputs) + start * kPanel * sizeof(int16_t);
    const size_t scale = static_cast<size_t>(row) * blocks(inputs) + block;
    Operands all{a.values + static_cast<size_t>(row) * inputs + static_cast<size_t>(start) * rows,
                 a.scales + scale, static_cast<size_t>(blocks(inputs)), w + at,
                 w + block * kPanel * sizeof(float), ldw,
                 std::min(depth(inputs), inputs - start) / 2, block > 0, out, ldo, next + at, ldn};
    table[rows - 1][panels - 1](all);
    all.add = true;
    for (int r = 0; r < rows; ++r, all.out += ldo) {
      all.a_scales = a.scales_of_rests + scale + static_cast<size_t>(r) * blocks(inputs);
      if (*all.a_scales == 0.0f) continue;
      all.a = a.rests + static_cast<size_t>(row + r) * inputs + start;
      table[0][panels - 1](all);
    }
  }

 private:
  static constexpr int kDepth = 192;  // most inputs of a block
  // The root of 2^31 less what rounding kDepth numbers can add to a norm.
  static constexpr float kNorm = 46340.0f - 12.0f;
  static constexpr float kMost = 32767.0f;
  static constexpr float kNothing = 1e-30f;  // what is below is 0
  // Rests are a half, so the norm of a block's is below 7.
  static constexpr float kFiner = 6000.0f;
  static constexpr int kCoarse = 64;  // a value below is off by more than a 128th

  struct Operands {
    const int16_t* a;
    const float* a_scales;
    size_t ld_scales;
    const char *w, *w_scales;
    size_t ldw;
    int pairs;
    bool add;
    float* out;
    size_t ldo;
    const char* next;
    size_t ldn;
  };

  // Inputs of a block: all of them alike, but for the last.
  static int depth(int inputs) {
    const int each = (inputs + blocks(inputs) - 1) / blocks(inputs);
    return (each + kPanel - 1) / kPanel * kPanel;
  }

  static size_t scale_bytes(int inputs) { return blocks(inputs) * kPanel * sizeof(float); }

  // Bring numbers, a multiple of 16, to whole ones; return what one of those stands for.
  template <class From>
  static float to_words(const From* from, int16_t* to, int count) {
    __m512 most = _mm512_setzero_ps(), sum = most, squares = most;
    for (int k = 0; k < count; k += 16) {
      const __m512 x = load16(from + k);
      most = _mm512_max_ps(most, _mm512_abs_ps(x));
      sum = _mm512_add_ps(sum, x);
    }
    const float top = _mm512_reduce_max_ps(most);
    const float unit = top > kNothing ? 1.0f / top : 0.0f;
    for (int k = 0; k < count; k += 16) {
      const __m512 x = _mm512_mul_ps(load16(from + k), _mm512_set1_ps(unit));
      squares = _mm512_fmadd_ps(x, x, squares);
    }
    // The norm is 1 at least, unless all is 0.
    const float norm = std::max(1.0f, std::sqrt(_mm512_reduce_add_ps(squares)));
    const float factor = unit * std::min(kMost, kNorm / norm);
    for (int k = 0; k < count; k += 16) {
      const __m512 x = _mm512_mul_ps(load16(from + k), _mm512_set1_ps(factor));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k),
                          _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
    }
    // A maximum skips what is no number, and a product of the scale must not.
    return (factor > 0.0f ? 1.0f / factor : 0.0f) + 0.0f * _mm512_reduce_add_ps(sum);
  }

  // Whether more than half of a block's values have few digits.
  static bool coarse(const int16_t* values, int count) {
    int small = 0;
    for (int k = 0; k < count; k += 16) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + k));
      small += __builtin_popcount(
          _mm256_cmplt_epi16_mask(_mm256_abs_epi16(x), _mm256_set1_epi16(kCoarse)));
    }
    return 2 * small > count;
  }

  static void find_rests(const Value* from, const int16_t* values, int16_t* rests, int count,
                         float scale) {
    const __m512 factor = _mm512_set1_ps(1.0f / scale);
    for (int k = 0; k < count; k += 16) {
      const __m512 whole = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + k))));
      const __m512 rest = _mm512_fmsub_ps(load16(from + k), factor, whole);
      _mm256_storeu_si256(
          reinterpret_cast<__m256i*>(rests + k),
          _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(rest, _mm512_set1_ps(kFiner)))));
    }
  }

  static __m512i add_pairs(__m512i sums, __m512i one, __m512i two) {
#ifdef NATIVE_EMULATE
    return _mm512_add_epi32(sums, _mm512_madd_epi16(one, two));
#else
    // Not the intrinsic: GCC 12 copies its sums to memory and back.
    asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(one), "v"(two));
    return sums;
#endif
  }

  template <int MR, int NB>
  static void tile(const Operands& o) {
    __m512i sums[MR][NB];
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 6
      for (int n = 0; n < NB; ++n) sums[r][n] = _mm512_setzero_si512();
    const int16_t* a = o.a;
    const size_t ldw = o.ldw, ldn = o.ldn;
    const char *w = o.w, *next = o.next;
    for (int k = 0; k < o.pairs; ++k) {
      __m512i weights[NB];
#pragma GCC unroll 6
      for (int n = 0; n < NB; ++n) {
        weights[n] = _mm512_load_si512(w + n * ldw + static_cast<size_t>(k) * 64);
        _mm_prefetch(next + n * ldn + static_cast<size_t>(k) * 64, _MM_HINT_T1);
      }
#pragma GCC unroll 12
      for (int r = 0; r < MR; ++r) {
        int32_t two;
        std::memcpy(&two, a + 2 * (static_cast<size_t>(k) * MR + r), 4);
        const __m512i inputs = _mm512_set1_epi32(two);
#pragma GCC unroll 6
        for (int n = 0; n < NB; ++n) sums[r][n] = add_pairs(sums[r][n], inputs, weights[n]);
      }
    }
#pragma GCC unroll 6
    for (int n = 0; n < NB; ++n) {
      const __m512 scale = _mm512_load_ps(o.w_scales + n * ldw);
#pragma GCC unroll 12
      for (int r = 0; r < MR; ++r) {
        const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(o.a_scales[r * o.ld_scales]));
        float* to = o.out + r * o.ldo + n * kPanel;
        const __m512 before = o.add ? _mm512_loadu_ps(to) : _mm512_setzero_ps();
        _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][n]), both, before));
      }
    }
  }
};

#pragma GCC pop_options

}  // namespace NATIVE_LEVEL
}  // namespace native
