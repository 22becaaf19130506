// Matrix products of rows of activations and panels of weights, with fp32 sums.
//
// A weight of N outputs and K inputs lies in panels of 16 outputs: [N/16][K/2][16][2] in bf16. One
// vector of a panel holds two inputs of all 16 outputs. Each output is one chain of sums in the
// order of the inputs, however many rows are computed together: a row's result never depends on the
// rows beside it.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace native {
namespace NATIVE_LEVEL {

struct Panels {
  char* data = nullptr;
  int count = 0;  // panels
  int inputs = 0;
  size_t stride = 0;  // bytes of a panel
};

// The tiles of up to 12 rows by the numbers of panels for which there is one; OF(rows, panels)
// names a function.
#define NATIVE_NARROW(OF, R) {OF(R, 1), OF(R, 2), nullptr, nullptr, nullptr, nullptr}
#define NATIVE_MIDDLE(OF, R) {OF(R, 1), OF(R, 2), nullptr, OF(R, 4), nullptr, nullptr}
#define NATIVE_BROAD(OF, R) {OF(R, 1), OF(R, 2), nullptr, OF(R, 4), nullptr, OF(R, 6)}
#define NATIVE_TABLE(OF)                                                                       \
  {NATIVE_BROAD(OF, 1),  NATIVE_BROAD(OF, 2),   NATIVE_BROAD(OF, 3),   NATIVE_MIDDLE(OF, 4),   \
   NATIVE_MIDDLE(OF, 5), NATIVE_MIDDLE(OF, 6),  NATIVE_NARROW(OF, 7),  NATIVE_NARROW(OF, 8),   \
   NATIVE_NARROW(OF, 9), NATIVE_NARROW(OF, 10), NATIVE_NARROW(OF, 11), NATIVE_NARROW(OF, 12)}

// The products of plain vectors. A kernel is the most rows of a tile, how many panels a tile of so
// many rows takes, into how many blocks the inputs are cut, how many tiles go through a block
// together, and the function that computes one tile. Beside it, how weights come into panels.
struct Vectors {
  struct Rows {
    const Value* data;
    size_t ld;
  };
  static constexpr int kRows = 12;
  static constexpr int kWide = 6;
  static constexpr int kTogether = 1;

  // What the 32 registers hold.
  static int panels_of(int rows) {
#if NATIVE_BF16
    return rows <= 3 ? 6 : rows <= 6 ? 4 : 2;
#else
    return rows <= 2 ? 6 : rows <= 3 ? 4 : 2;
#endif
  }

  static int blocks(int) { return 1; }
  static size_t stride(int inputs) { return static_cast<size_t>(inputs) * kPanel * sizeof(bf16); }
  static void prepare(int) {}
  static void finish() {}

  // Bring one output's weights into its lane of a panel.
  static void pack(const bf16* from, char* panel, int lane, int inputs) {
    auto* to = reinterpret_cast<bf16*>(panel) + 2 * lane;
    for (int k = 0; k < inputs; k += 2, to += 2 * kPanel)
      std::memcpy(to, from + k, 2 * sizeof(bf16));
  }

  // One output's weights, as they are multiplied.
  static void unpack(const char* panel, int lane, int inputs, Value* to) {
    const auto* from = reinterpret_cast<const bf16*>(panel) + 2 * lane;
    for (int k = 0; k < inputs; ++k)
      to[k] = to_value(from[static_cast<size_t>(k / 2) * 2 * kPanel + k % 2]);
  }

  static void compute(const Rows& a, int row, int rows, int panels, const char* w, size_t ldw,
                      int inputs, int, float* out, size_t ldo, const char* next, size_t ldn) {
    choose<false>(rows, panels)(a.data + row * a.ld, a.ld, reinterpret_cast<const bf16*>(w),
                                ldw / sizeof(bf16), inputs / 2, out, ldo, next, ldn);
  }

  using Tile = void (*)(const Value*, size_t, const bf16*, size_t, int, float*, size_t,
                        const char*, size_t);

  // out[MR][NB * 16] (+)= a[MR][2 * pairs] x NB panels. `next` is what will be read soon, `ldn` the
  // distance of its NB streams in bytes.
  template <int MR, int NB, bool ADD>
  static void tile(const Value* a, size_t lda, const bf16* w, size_t ldw, int pairs, float* out,
                   size_t ldo, const char* next, size_t ldn) {
    __m512 sums[MR][NB];
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 6
      for (int n = 0; n < NB; ++n)
        sums[r][n] = ADD ? _mm512_loadu_ps(out + r * ldo + n * kPanel) : _mm512_setzero_ps();
    for (int k = 0; k < pairs; ++k) {
      __m512i weights[NB];
#pragma GCC unroll 6
      for (int n = 0; n < NB; ++n) {
        weights[n] = _mm512_load_si512(w + n * ldw + static_cast<size_t>(k) * 32);
        _mm_prefetch(next + n * ldn + static_cast<size_t>(k) * 64, _MM_HINT_T1);
      }
#if NATIVE_BF16
#pragma GCC unroll 12
      for (int r = 0; r < MR; ++r) {
        int32_t two;
        std::memcpy(&two, a + r * lda + 2 * k, 4);
        const __m512i inputs = _mm512_set1_epi32(two);
#pragma GCC unroll 6
        for (int n = 0; n < NB; ++n) sums[r][n] = add_pairs(sums[r][n], inputs, weights[n]);
      }
#else
      __m512 odd[NB], even[NB];
#pragma GCC unroll 6
      for (int n = 0; n < NB; ++n) {
        odd[n] = high_halves(weights[n]);
        even[n] = low_halves(weights[n]);
      }
#pragma GCC unroll 12
      for (int r = 0; r < MR; ++r) {
        const __m512 first = _mm512_set1_ps(a[r * lda + 2 * k]);
        const __m512 second = _mm512_set1_ps(a[r * lda + 2 * k + 1]);
#pragma GCC unroll 6
        for (int n = 0; n < NB; ++n)
          sums[r][n] = _mm512_fmadd_ps(first, even[n], _mm512_fmadd_ps(second, odd[n], sums[r][n]));
      }
#endif
    }
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 6
      for (int n = 0; n < NB; ++n) _mm512_storeu_ps(out + r * ldo + n * kPanel, sums[r][n]);
  }

  template <bool ADD>
  static Tile choose(int rows, int panels) {
#define NATIVE_ONE(R, N) tile<R, N, ADD>
    static const Tile table[kRows][kWide] = NATIVE_TABLE(NATIVE_ONE);
#undef NATIVE_ONE
    return table[rows - 1][panels - 1];
  }

 private:
  static __m512 high_halves(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(0xFFFF0000)));
  }

  static __m512 low_halves(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  }

  static __m512 add_pairs(__m512 sums, __m512i one, __m512i two) {
#if NATIVE_BF16 && !defined(NATIVE_EMULATE)
    return _mm512_dpbf16_ps(sums, (__m512bh)one, (__m512bh)two);
#else
    sums = _mm512_fmadd_ps(high_halves(one), high_halves(two), sums);
    return _mm512_fmadd_ps(low_halves(one), low_halves(two), sums);
#endif
  }
};

// Rows in tiles of `most` rows or fewer, as even as can be.
struct Cut {
  int rows, tiles;
  Cut(int rows, int most) : rows(rows), tiles((rows + most - 1) / most) {}
  int first(int tile) const { return tile * (rows / tiles) + std::min(tile, rows % tiles); }
  int height(int tile) const { return rows / tiles + (tile < rows % tiles); }
  int tile_of(int row) const {
    const int low = rows / tiles, in_higher = rows % tiles * (low + 1);
    return row < in_higher ? row / (low + 1) : rows % tiles + (row - in_higher) / low;
  }
};

// The largest number of panels with a tile of their own, for what is left of a range.
inline int fitting(int wanted, int left) {
  const int most = wanted < left ? wanted : left;
  return most >= 6 ? 6 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

// What a tile fetches while it is multiplied: panels so many bytes apart.
struct Fetch {
  const char* from;
  size_t apart;
};

// The next panels come from memory while these are multiplied: all of them during the only tile,
// else a half during each of the first two.
inline Fetch fetch(const char* here, const char* following, size_t stride, int panels, int tile,
                   int tiles) {
  if (following == nullptr) return {here, 0};
  if (tiles == 1) return {following, stride};
  if (tile < 2 && tile < panels) return {following + tile * stride, 0};
  return {here, 0};
}

// The panels [from, to) of a product for all rows; `take(row, panel, rows, panels, sums, ld)` gets
// each finished tile. `after` is where the caller goes on reading weights, or null.
template <class Kernel, class Take>
void multiply(const typename Kernel::Rows& a, int rows, const Panels& w, int from, int to,
              const char* after, Take&& take) {
  alignas(64) float sums[Kernel::kTogether * Kernel::kRows * Kernel::kWide * kPanel];
  const Cut cut(rows, Kernel::kRows);
  const int wide = Kernel::panels_of(cut.height(0));
  const int blocks = Kernel::blocks(w.inputs);
  int prepared = 0;
  for (int panel = from; panel < to;) {
    const int panels = fitting(wide, to - panel);
    const char* here = w.data + panel * w.stride;
    const char* following = panel + panels < to ? here + panels * w.stride : after;
    const size_t ld = static_cast<size_t>(panels) * kPanel;
    // All rows go through the same panels, so that these come from memory once.
    for (int start = 0; start < cut.tiles; start += Kernel::kTogether) {
      const int end = std::min(cut.tiles, start + Kernel::kTogether);
      for (int block = 0; block < blocks; ++block)
        for (int tile = start; tile < end; ++tile) {
          const Fetch next = fetch(here, following, w.stride, panels, tile, cut.tiles);
          const int row = cut.first(tile), height = cut.height(tile);
          if (height != prepared) Kernel::prepare(prepared = height);
          float* of_tile = sums + (row - cut.first(start)) * ld;
          Kernel::compute(a, row, height, panels, here, w.stride, w.inputs, block, of_tile, ld,
                          next.from, next.apart);
          if (block + 1 == blocks) take(row, panel, height, panels, of_tile, ld);
        }
    }
    panel += panels;
  }
  Kernel::finish();
}

}  // namespace NATIVE_LEVEL
}  // namespace native
