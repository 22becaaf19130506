// Softmax attention of some rows of queries over pages of keys and values.
//
// A page has the keys of one head for 32 tokens, and after them their values, both with the layout
// of weights: keys in panels of 16 tokens, with dimensions as inputs; values in panels of 16
// dimensions, with tokens as inputs. So attention uses the tiles of matrix products.
#pragma once

#include <algorithm>
#include <cstring>

#include "panels.h"

namespace native {
namespace NATIVE_LEVEL {

class Attention {
 public:
  static constexpr int kMaxWidth = 256;
  static constexpr int kRows = Vectors::kRows;

  struct Query {
    const Value* from;  // its numbers
    Value* to;          // of its result
    int position;       // of its token, which is the last that it sees
  };

  // Numbers of a head; tokens of the window, 0 for none; factor of scores.
  Attention(int width, int window, float scale) : width_(width), window_(window), factor_(scale * kLog2E) {}

  // The first page that a query at this position sees.
  int first_page(int position) const {
    return window_ > 0 ? std::max(0, position - window_ + 1) / kPage : 0;
  }

  // Attend queries of one head, in the order of their positions: softmax in blocks of one page, with
  // running maxima and sums. `keys(page)` is where a page lies; `after` is the page that will be
  // needed next, which comes from memory meanwhile.
  template <class Keys>
  void attend(const Query* queries, int rows, const Keys& keys, const bf16* after) const {
    const int panels = width_ / kPanel;
    alignas(64) Value from[kRows * (kMaxWidth + 32)];
    alignas(64) float scores[kRows * kPage];
    alignas(64) Value weights[kRows * (kPage + 32)];
    alignas(64) float sums[kRows * kMaxWidth];
    alignas(64) float totals[kRows * 16];
    float top[kRows];
    const size_t ldq = width_ + 32, ldw = kPage + 32;
    for (int r = 0; r < rows; ++r) {
      std::memcpy(from + r * ldq, queries[r].from, sizeof(Value) * width_);
      top[r] = -1e30f;
    }
    std::memset(totals, 0, sizeof(float) * rows * 16);
    std::memset(sums, 0, sizeof(float) * rows * width_);
    const size_t half = static_cast<size_t>(width_) * kPage;
    const int last = queries[rows - 1].position / kPage;
    int page = first_page(queries[0].position);
    for (const bf16* k = keys(page); page <= last; ++page) {
      const bf16* v = k + half;
      const bf16* soon = page < last ? keys(page + 1) : after;
      Vectors::choose<false>(rows, 2)(from, ldq, k, half / 2, width_ / 2, scores, kPage,
                                      reinterpret_cast<const char*>(soon), half);
      for (int r = 0; r < rows; ++r)
        weigh(scores + r * kPage, queries[r].position - page * kPage, weights + r * ldw,
              sums + r * width_, totals + r * 16, &top[r]);
      for (int panel = 0; panel < panels;) {
        const int wide = fitting(Vectors::panels_of(rows), panels - panel);
        Vectors::choose<true>(rows, wide)(
            weights, ldw, v + panel * kPage * kPanel, kPage * kPanel, kPage / 2,
            sums + panel * kPanel, width_,
            reinterpret_cast<const char*>(soon + half + panel * kPage * kPanel),
            kPage * kPanel * sizeof(bf16));
        panel += wide;
      }
      k = soon;
    }
    for (int r = 0; r < rows; ++r) {
      const float total = _mm512_reduce_add_ps(_mm512_load_ps(totals + r * 16));
      const __m512 part = _mm512_set1_ps(1.0f / total);
      for (int k = 0; k < width_; k += 16)
        store16(queries[r].to + k, _mm512_mul_ps(_mm512_loadu_ps(sums + r * width_ + k), part));
    }
  }

 private:
  // Weights of one row for a page of scores; `own` is the number of its own key in it. They are
  // 2^(score - top), with scores in powers of two; `top` is the highest so far, which few pages
  // change. `totals` are 16 parts of their sum.
  void weigh(const float* scores, int own, Value* weights, float* sums, float* totals,
             float* top) const {
    const __m512 factor = _mm512_set1_ps(factor_), from = _mm512_set1_ps(*top);
    const uint32_t mask = seen(own);
    const auto first = static_cast<__mmask16>(mask), second = static_cast<__mmask16>(mask >> 16);
    __m512 low = _mm512_fmsub_ps(_mm512_loadu_ps(scores), factor, from);
    __m512 high = _mm512_fmsub_ps(_mm512_loadu_ps(scores + 16), factor, from);
    const __m512 none = _mm512_setzero_ps();
    if ((_mm512_mask_cmp_ps_mask(first, low, none, _CMP_GT_OQ) |
         _mm512_mask_cmp_ps_mask(second, high, none, _CMP_GT_OQ)) != 0) {
      low = _mm512_mul_ps(_mm512_loadu_ps(scores), factor);
      high = _mm512_mul_ps(_mm512_loadu_ps(scores + 16), factor);
      const float before = *top;
      *top = std::max(_mm512_mask_reduce_max_ps(first, low), _mm512_mask_reduce_max_ps(second, high));
      scale(power_of_two(_mm512_set1_ps(before - *top)), sums, totals);
      low = _mm512_sub_ps(low, _mm512_set1_ps(*top));
      high = _mm512_sub_ps(high, _mm512_set1_ps(*top));
    }
    const __m512 e1 = _mm512_maskz_mov_ps(first, power_of_two(low));
    const __m512 e2 = _mm512_maskz_mov_ps(second, power_of_two(high));
    store32(weights, e1, e2);
    _mm512_store_ps(totals, _mm512_add_ps(_mm512_load_ps(totals), _mm512_add_ps(e1, e2)));
  }

  // Bring what was summed up so far to another top.
  void scale(__m512 factor, float* sums, float* totals) const {
    _mm512_store_ps(totals, _mm512_mul_ps(_mm512_load_ps(totals), factor));
    for (int k = 0; k < width_; k += 16)
      _mm512_store_ps(sums + k, _mm512_mul_ps(_mm512_load_ps(sums + k), factor));
  }

  // Which keys of a page a row sees whose own key is number `own` of it.
  uint32_t seen(int own) const {
    uint32_t mask = own >= kPage - 1 ? ~0u : own < 0 ? 0u : (2u << own) - 1;
    if (window_ > 0) {
      const int oldest = own - window_ + 1;
      if (oldest >= kPage) return 0;
      if (oldest > 0) mask &= ~0u << oldest;
    }
    return mask;
  }

  int width_, window_;
  float factor_;  // of scores, to powers of two
};

}  // namespace NATIVE_LEVEL
}  // namespace native
