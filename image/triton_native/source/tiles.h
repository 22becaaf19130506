// Products in bf16 by AMX: 16 rows x 16 outputs x 32 inputs an instruction.
//
// Tiles are used for any number of rows, so that a row's sums are added in the same order alone and
// in a batch. A panel's weights are what TDPBF16PS wants: 16 pairs of inputs of 16 outputs in a row.
#pragma once

#include "panels.h"
#ifdef NATIVE_EMULATE
#include "emulated_tiles.h"
#endif

namespace native {
namespace NATIVE_LEVEL {

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");

#pragma GCC push_options
#ifndef NATIVE_EMULATE
#pragma GCC target("amx-tile,amx-bf16")
#endif

struct Tiles {
  using Rows = Vectors::Rows;
  static constexpr int kRows = 32;
  static constexpr int kWide = 4;
  static constexpr int kTogether = 1;
  static constexpr int kDepth = 32;  // inputs of a tile

  // Registers 0 to 3 hold the sums, of rows up to 16 by 4 panels or of rows up to 32 by 2.
  static int panels_of(int rows) { return rows <= 16 ? 4 : 2; }

  static int blocks(int) { return 1; }

  // Registers: sums 0-3, rows 4 and 5, weights 6 and 7.
  static void prepare(int rows) {
    TileConfig config;
    const int first = rows <= 16 ? rows : (rows + 1) / 2;
    const int second = rows <= 16 ? rows : rows / 2;
    for (int t = 0; t < 8; ++t) config.bytes[t] = 64;
    config.rows[0] = config.rows[1] = config.rows[4] = static_cast<uint8_t>(first);
    config.rows[2] = config.rows[3] = config.rows[5] = static_cast<uint8_t>(second);
    config.rows[6] = config.rows[7] = 16;
    load(config);
  }

  static void finish() { _tile_release(); }

  static void compute(const Rows& a, int row, int rows, int panels, const char* w, size_t ldw,
                      int inputs, int, float* out, size_t ldo, const char* next, size_t ldn) {
    const Value* from = a.data + row * a.ld;
    const size_t lda = a.ld * sizeof(Value), ld = ldo * sizeof(float);
    const int steps = inputs / kDepth;
    if (rows > 16) {
      const int first = (rows + 1) / 2;
      const Value* below = from + first * a.ld;
      float* out_below = out + first * ldo;
      if (panels == 2) {
        two_by_two(from, below, lda, w, w + ldw, steps, out, out_below, ld, next, ldn);
      } else {
        two_by_one(from, below, lda, w, steps, out, out_below, ld);
      }
      return;
    }
    int done = 0;
    if (panels == 4) {
      one_by_four(from, lda, w, ldw, steps, out, ld, next, ldn);
      done = 4;
    } else if (panels >= 2) {
      one_by_two(from, lda, w, ldw, steps, out, ld, next, ldn);
      done = 2;
    }
    for (; done < panels; ++done) one_by_one(from, lda, w + done * ldw, steps, out + done * 16, ld);
  }

 private:
  // Not _tile_loadconfig: GCC 12 declares that it reads 8 bytes only, and removes the stores of the
  // other 56 as dead. The tiles then have no size, and the next instruction ends with SIGILL.
  static void load(const TileConfig& config) {
#ifdef NATIVE_EMULATE
    emulated::configure(&config);
#else
    asm volatile("ldtilecfg %0" : : "m"(config));
#endif
  }

  static constexpr size_t kTile = 1024;  // bytes of weights that a tile holds

  static void fetch(const char* next, int step) {
    for (size_t line = 0; line < kTile; line += 64)
      _mm_prefetch(next + step * kTile + line, _MM_HINT_T1);
  }

  static void two_by_two(const Value* a, const Value* below, size_t lda, const char* w,
                         const char* w2, int steps, float* out, float* out_below, size_t ld,
                         const char* next, size_t ldn) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < steps; ++k) {
      _tile_loadd(4, a + k * kDepth, lda);
      _tile_loadd(6, w + k * kTile, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, w2 + k * kTile, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, below + k * kDepth, lda);
      fetch(next, k);
      if (ldn != 0) fetch(next + ldn, k);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, ld);
    _tile_stored(1, out + 16, ld);
    _tile_stored(2, out_below, ld);
    _tile_stored(3, out_below + 16, ld);
  }

  static void two_by_one(const Value* a, const Value* below, size_t lda, const char* w, int steps,
                         float* out, float* out_below, size_t ld) {
    _tile_zero(0);
    _tile_zero(2);
    for (int k = 0; k < steps; ++k) {
      _tile_loadd(6, w + k * kTile, 64);
      _tile_loadd(4, a + k * kDepth, lda);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, below + k * kDepth, lda);
      _tile_dpbf16ps(2, 5, 6);
    }
    _tile_stored(0, out, ld);
    _tile_stored(2, out_below, ld);
  }

  static void one_by_four(const Value* a, size_t lda, const char* w, size_t ldw, int steps,
                          float* out, size_t ld, const char* next, size_t ldn) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < steps; ++k) {
      const char* here = w + k * kTile;
      _tile_loadd(4, a + k * kDepth, lda);
      _tile_loadd(6, here, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, here + ldw, 64);
      _tile_dpbf16ps(1, 4, 7);
      fetch(next, k);
      if (ldn != 0) fetch(next + ldn, k);
      _tile_loadd(6, here + 2 * ldw, 64);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(7, here + 3 * ldw, 64);
      _tile_dpbf16ps(3, 4, 7);
      if (ldn != 0) {
        fetch(next + 2 * ldn, k);
        fetch(next + 3 * ldn, k);
      }
    }
    _tile_stored(0, out, ld);
    _tile_stored(1, out + 16, ld);
    _tile_stored(2, out + 32, ld);
    _tile_stored(3, out + 48, ld);
  }

  static void one_by_two(const Value* a, size_t lda, const char* w, size_t ldw, int steps,
                         float* out, size_t ld, const char* next, size_t ldn) {
    _tile_zero(0);
    _tile_zero(1);
    for (int k = 0; k < steps; ++k) {
      _tile_loadd(4, a + k * kDepth, lda);
      _tile_loadd(6, w + k * kTile, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, w + ldw + k * kTile, 64);
      _tile_dpbf16ps(1, 4, 7);
      fetch(next, k);
      if (ldn != 0) fetch(next + ldn, k);
    }
    _tile_stored(0, out, ld);
    _tile_stored(1, out + 16, ld);
  }

  static void one_by_one(const Value* a, size_t lda, const char* w, int steps, float* out,
                         size_t ld) {
    _tile_zero(0);
    for (int k = 0; k < steps; ++k) {
      _tile_loadd(4, a + k * kDepth, lda);
      _tile_loadd(6, w + k * kTile, 64);
      _tile_dpbf16ps(0, 4, 6);
    }
    _tile_stored(0, out, ld);
  }
};

#pragma GCC pop_options

}  // namespace NATIVE_LEVEL
}  // namespace native
