// The forward pass of Llama-shaped models for rows of different lengths: one token of each running
// row, or chunks of several prompts, all in the same matrix products.
//
// Keys and values lie in pages of 32 tokens, each with all layers; a sequence is a list of pages.
// Within a page, keys and values have the layout of weights, so attention uses the same tiles.
// Results are rounded to bf16 where the models of transformers round.
//
// Each level of instructions includes this once, in a namespace of its own.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "pool.h"

// After the headers above, which are compiled for any x86-64.
#include "vectors.h"

#include "attention.h"
#include "int8.h"
#include "panels.h"
#if NATIVE_TILES
#include "tiles.h"
#endif
#if NATIVE_WORDS
#include "int16.h"
#endif

namespace native {
namespace NATIVE_LEVEL {

// How weights in bf16 lie in their panels.
#if NATIVE_WORDS
using Packed = Words;
#else
using Packed = Vectors;
#endif

inline size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

// Zeroed memory in large pages where the system has them.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes < kLarge ? bytes : bytes + kLarge) {
    mapped_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped_ == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<char*>(mapped_);
    if (bytes < kLarge) return;
    data_ += -reinterpret_cast<uintptr_t>(mapped_) % kLarge;
    madvise(data_, bytes, MADV_HUGEPAGE);
  }
  ~Memory() { munmap(mapped_, bytes_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  char* data() const { return data_; }

 private:
  static constexpr size_t kLarge = size_t{1} << 21;

  size_t bytes_;
  void* mapped_;
  char* data_;
};

// Rows of activations. The distance of two rows is no large power of two, because that would put
// the rows of a tile into the same few lines of the cache.
struct Rows {
  std::unique_ptr<Memory> memory;
  size_t ld = 0;
  Value* row(int index) const { return reinterpret_cast<Value*>(memory->data()) + index * ld; }
  void make(int rows, int width) {
    ld = round_up(width, 32) + 32;
    memory = std::make_unique<Memory>(static_cast<size_t>(rows) * ld * sizeof(Value));
  }
};

struct Layer {
  Panels weights[kKinds];
  std::vector<float> input_norm, post_norm, q_norm, k_norm, bias;
};

class Model final : public Step {
 public:
  explicit Model(const Config& config)
      : c_(config),
        int8_(config.precision == kInt8),
        group_(c_.heads / c_.kv_heads),
        qkv_((c_.heads + 2 * c_.kv_heads) * c_.head_dim),
        attention_(c_.head_dim, c_.window, c_.scale),
        layers_(c_.layers),
        pool_(c_.threads) {
    const int head_rows = static_cast<int>(round_up(c_.vocabulary, kPanel));
    size_t bytes = size(head_rows, c_.hidden) +
                   c_.layers * (size(qkv_, c_.hidden) + size(c_.hidden, c_.heads * c_.head_dim) +
                                size(2 * c_.intermediate, c_.hidden) +
                                size(c_.hidden, c_.intermediate));
    const size_t embedding = static_cast<size_t>(c_.vocabulary) * c_.hidden * sizeof(bf16);
    if (c_.separate_embedding) bytes += embedding;
    weights_ = std::make_unique<Memory>(bytes);
    char* at = weights_->data();
    auto place = [&](int outputs, int inputs) {
      Panels made{at, outputs / kPanel, inputs, stride(inputs)};
      at += size(outputs, inputs);
      return made;
    };
    for (Layer& layer : layers_) {
      layer.weights[kQkv] = place(qkv_, c_.hidden);
      layer.weights[kOut] = place(c_.hidden, c_.heads * c_.head_dim);
      layer.weights[kGateUp] = place(2 * c_.intermediate, c_.hidden);
      layer.weights[kDown] = place(c_.hidden, c_.intermediate);
    }
    head_ = place(head_rows, c_.hidden);
    if (c_.separate_embedding) embedding_ = reinterpret_cast<bf16*>(at);
  }

  // Waits for a call that another thread has not come back from, as at the end of a process.
  ~Model() override { const std::lock_guard<std::mutex> alone(busy_); }

  // Pack a matrix [outputs, inputs]; it becomes the outputs from `first` on of its place. Panels
  // of gate (part 0) and up (part 1) alternate, so that one tile has both.
  void set_weight(int kind, int layer, int part, int first, int outputs,
                  const bf16* from) override {
    if (kind == kKinds) {
      std::memcpy(embedding_, from, sizeof(bf16) * static_cast<size_t>(outputs) * c_.hidden);
      return;
    }
    const Panels& to = kind == kHead ? head_ : layers_[layer].weights[kind];
    pool_.open();
    pool_.run(static_cast<int>(round_up(outputs, kPanel) / kPanel), [&](int source) {
      int panel = first / kPanel + source;
      if (kind == kGateUp) panel = 2 * panel + part;
      char* out = to.data + panel * to.stride;
      for (int lane = 0; lane < kPanel; ++lane) {
        const int row = source * kPanel + lane;
        if (row >= outputs) break;
        const bf16* in = from + static_cast<size_t>(row) * to.inputs;
        if (int8_)
          Bytes::pack(in, out, lane, to.inputs);
        else
          Packed::pack(in, out, lane, to.inputs);
      }
    });
    pool_.close();
  }

  void set_vector(int kind, int layer, int length, const bf16* from) override {
    std::vector<float> values(length);
    for (int i = 0; i < length; ++i) values[i] = to_float(from[i]);
    Layer* of = layer >= 0 ? &layers_[layer] : nullptr;
    switch (kind) {
      case kInputNorm: of->input_norm = values; break;
      case kPostNorm: of->post_norm = values; break;
      case kFinalNorm: final_norm_ = values; break;
      case kQNorm: of->q_norm = values; break;
      case kKNorm: of->k_norm = values; break;
      case kBias: of->bias = values; break;
      default: break;
    }
  }

  // Cosines and sines of the first half of a head, [positions, head_dim / 2].
  void set_rotation(int positions, const bf16* cosines, const bf16* sines) override {
    const size_t count = static_cast<size_t>(positions) * (c_.head_dim / 2);
    cosines_.assign(cosines, cosines + count);
    sines_.assign(sines, sines + count);
  }

  size_t page_bytes() const override {
    return sizeof(bf16) * 2 * static_cast<size_t>(c_.layers) * c_.kv_heads * c_.head_dim * kPage;
  }

  // A page whose values are 0, because 0 x NaN of a former user would be NaN.
  void* new_page() override {
    std::vector<void*>& from = free_.empty() ? fresh_ : free_;
    if (from.empty() && !more_pages()) return nullptr;
    void* page = from.back();
    from.pop_back();
    const size_t half = static_cast<size_t>(c_.head_dim) * kPage;
    auto* values = static_cast<bf16*>(page) + half;  // keys come before them
    for (int block = 0; block < c_.layers * c_.kv_heads; ++block, values += 2 * half)
      std::memset(values, 0, half * sizeof(bf16));
    return page;
  }

  void free_page(void* page) override { free_.push_back(page); }

  // Memory that was never used comes from the system when it is touched, which on some virtual
  // machines takes as long as a tenth of the prompt that it is for.
  bool prepare_page(size_t most) override {
    if (free_.size() >= most || (fresh_.empty() && !more_pages())) return false;
    std::memset(fresh_.back(), 0, page_bytes());
    free_.push_back(fresh_.back());
    fresh_.pop_back();
    return true;
  }

  // Copy the keys and values of the first tokens of a page to a new one.
  void copy_page(const void* from, void* to, int count) const override {
    const size_t half = static_cast<size_t>(c_.head_dim) * kPage;
    const int pairs = (count + 1) / 2;
    const auto* in = static_cast<const bf16*>(from);
    auto* out = static_cast<bf16*>(to);
    for (int block = 0; block < c_.layers * c_.kv_heads; ++block, in += 2 * half, out += 2 * half) {
      std::memcpy(out, in, half * sizeof(bf16));
      for (size_t panel = half; panel < 2 * half; panel += kPage * kPanel) {
        std::memcpy(out + panel, in + panel, pairs * 2 * kPanel * sizeof(bf16));
        // Values that are not the new owner's stay 0.
        for (int lane = 0; count % 2 != 0 && lane < kPanel; ++lane)
          out[panel + (pairs - 1) * 2 * kPanel + 2 * lane + 1] = 0;
      }
    }
  }

  void forward(const int32_t* tokens, const Segment* segments, int count, float* logits,
               int32_t* highest) override {
    const std::lock_guard<std::mutex> alone(busy_);
    plan(segments, count);
    reserve(static_cast<int>(places_.size()));
    pool_.open();
    embed(tokens);
    for (int index = 0; index < c_.layers; ++index) {
      const Layer& layer = layers_[index];
      const bool last = index + 1 == c_.layers;
      normalise(layer.input_norm);
      product(normed_, layer, kQkv, layer.bias.data(), layer.weights[kOut]);
      attend(layer, index);
      product(attended_, layer, kOut, nullptr, layer.weights[kGateUp]);
      normalise(layer.post_norm);
      product(normed_, layer, kGateUp, nullptr, layer.weights[kDown]);
      product(gated_, layer, kDown, nullptr, last ? head_ : layers_[index + 1].weights[kQkv]);
    }
    head(logits, highest);
    pool_.close();
  }

 private:
  struct Place {
    const Segment* segment;
    int position;
  };
  struct Tile {  // rows of attention: queries x heads of one group, flattened
    const Segment* segment;
    int first_place;  // of the segment
    int kv_head;
    int from, rows;
  };

  size_t stride(int inputs) const {
    return int8_ ? Bytes::stride(inputs) : Packed::stride(inputs);
  }

  size_t size(int outputs, int inputs) const { return outputs / kPanel * stride(inputs); }

  // Get memory for some more pages of keys and values; false where there is none.
  bool more_pages() {
    const size_t pages = std::max<size_t>(1, kPagesAtOnce / page_bytes());
    try {
      // So that none of these needs memory later.
      fresh_.reserve(pages);
      free_.reserve((memory_.size() + 1) * pages);
      memory_.push_back(std::make_unique<Memory>(pages * page_bytes()));
    } catch (const std::bad_alloc&) {
      return false;
    }
    for (size_t page = pages; page-- > 0;)
      fresh_.push_back(memory_.back()->data() + page * page_bytes());
    return true;
  }

  void plan(const Segment* segments, int count) {
    places_.clear();
    tiles_.clear();
    outputs_.clear();
    stepping_ = true;
    for (int s = 0; s < count; ++s) {
      const Segment& segment = segments[s];
      const int first = static_cast<int>(places_.size());
      for (int i = 0; i < segment.count; ++i) places_.push_back({&segment, segment.start + i});
      if (segment.output >= 0) outputs_.push_back({segment.output, first + segment.count - 1});
      stepping_ = stepping_ && segment.count == 1;
      const Cut cut(segment.count * group_, kRows);
      for (int head = 0; head < c_.kv_heads; ++head)
        for (int tile = 0; tile < cut.tiles; ++tile)
          tiles_.push_back({&segment, first, head, cut.first(tile), cut.height(tile)});
    }
    // One tile may read what another writes, unless each has its own token.
    stepping_ = stepping_ && group_ <= kRows;
  }

  void reserve(int rows) {
    if (rows <= capacity_) return;
    capacity_ = 0;  // until all have grown: any of them may find no memory
    const int more = static_cast<int>(round_up(rows, 64));
    hidden_.make(more, c_.hidden);
    normed_.make(more, c_.hidden);
    projected_.make(more, qkv_);
    attended_.make(more, c_.heads * c_.head_dim);
    gated_.make(more, c_.intermediate);
    const int widest = std::max({c_.hidden, c_.heads * c_.head_dim, c_.intermediate});
    if (int8_) bytes_.make(more, widest);
#if NATIVE_WORDS
    if (!int8_) words_.make(more, widest);
#endif
    capacity_ = more;
  }

  // Call body(first, last) for blocks of rows; few rows are not worth a second thread.
  template <class Body>
  void by_rows(int rows, int block, const Body& body) {
    pool_.run((rows + block - 1) / block,
              [&](int part) { body(part * block, std::min(rows, (part + 1) * block)); });
  }

  void embed(const int32_t* tokens) {
    by_rows(static_cast<int>(places_.size()), 8, [&](int from, int to) {
      for (int row = from; row < to; ++row) {
        Value* out = hidden_.row(row);
        const size_t token = tokens[row];
        if (embedding_ != nullptr) {
          const bf16* in = embedding_ + token * c_.hidden;
          for (int k = 0; k < c_.hidden; k += 16) store16(out + k, load16(in + k));
          continue;
        }
        const char* panel = head_.data + token / kPanel * head_.stride;
        const int lane = static_cast<int>(token % kPanel);
        if (int8_)
          Bytes::unpack(panel, lane, c_.hidden, out);
        else
          Packed::unpack(panel, lane, c_.hidden, out);
      }
    });
  }

  void normalise_row(const Value* in, Value* out, const float* weight, int width) const {
    __m512 squares = _mm512_setzero_ps();
    for (int k = 0; k < width; k += 16) {
      const __m512 x = load16(in + k);
      squares = _mm512_fmadd_ps(x, x, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(width);
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(mean + c_.epsilon));
    for (int k = 0; k < width; k += 16) {
      const __m512 x = rounded(_mm512_mul_ps(load16(in + k), factor));
      store16(out + k, _mm512_mul_ps(x, _mm512_loadu_ps(weight + k)));
    }
  }

  void normalise(const std::vector<float>& weight) {
    by_rows(static_cast<int>(places_.size()), 4, [&](int from, int to) {
      for (int row = from; row < to; ++row)
        normalise_row(hidden_.row(row), normed_.row(row), weight.data(), c_.hidden);
    });
  }

  // A product in parts of whole tiles, several for each thread and as even as can be, because the
  // others wait for the last one.
  struct Split {
    int wide, tiles, parts;  // panels of a tile, tiles of all panels
    int first_of(int part) const {
      return static_cast<int>(static_cast<int64_t>(part) * tiles / parts) * wide;
    }
  };

  template <class Kernel>
  Split split(const Panels& w, int rows) const {
    const int wide = rows <= Kernel::kRows ? Kernel::panels_of(rows) : 2;
    const int tiles = (w.count + wide - 1) / wide;
    return {wide, tiles, std::min(tiles, 8 * pool_.threads())};
  }

  // `next` are the weights of the product after this one, or null.
  template <class Kernel, class Take>
  void multiply_by(const typename Kernel::Rows& in, int rows, const Panels& w, const Panels* next,
                   const Take& take) {
    const Split now = split<Kernel>(w, rows);
    const Split then = next != nullptr ? split<Kernel>(*next, rows) : Split{};
    pool_.run(now.parts, [&](int part) {
      const int from = now.first_of(part), to = std::min(w.count, now.first_of(part + 1));
      // A thread goes on with its share, and then with that of the next product.
      const char* after = w.data + to * w.stride;
      const int thread = pool_.owner(part, now.parts);
      if (part + 1 == pool_.first_of(thread + 1, now.parts))
        after = next == nullptr ? nullptr
                                : next->data + then.first_of(pool_.first_of(thread, then.parts)) *
                                                   next->stride;
      multiply<Kernel>(in, rows, w, from, to, after, take);
    });
  }

  template <class Take>
  void multiply_all(const Rows& in, int rows, const Panels& w, const Panels* next,
                    const Take& take) {
    if (int8_) return multiply_converted<Bytes>(in, bytes_, rows, w, next, take);
#if NATIVE_WORDS
    multiply_converted<Words>(in, words_, rows, w, next, take);
#else
    const Vectors::Rows plain{in.row(0), in.ld};
#if NATIVE_TILES
    if (w.inputs % Tiles::kDepth == 0) return multiply_by<Tiles>(plain, rows, w, next, take);
#endif
    multiply_by<Vectors>(plain, rows, w, next, take);
#endif
  }

  // A kernel that does not multiply activations as they are.
  template <class Kernel, class Take>
  void multiply_converted(const Rows& in, typename Kernel::Buffer& buffer, int rows,
                          const Panels& w, const Panels* next, const Take& take) {
    const typename Kernel::Rows made = buffer.rows(rows, w.inputs);
    const Cut cut(rows, Kernel::kRows);
    pool_.run(cut.tiles, [&](int tile) {
      for (int row = cut.first(tile); row < cut.first(tile + 1); ++row)
        Kernel::convert(in.row(row), made, row, w.inputs);
    });
    multiply_by<Kernel>(made, rows, w, next, take);
  }

  void product(const Rows& in, const Layer& layer, Kind kind, const float* bias,
               const Panels& next) {
    multiply_all(in, static_cast<int>(places_.size()), layer.weights[kind], &next,
                 [&](int row, int panel, int rows, int panels, const float* sums, int ld) {
                   for (int r = 0; r < rows; ++r)
                     finish(kind, row + r, panel, panels, sums + r * ld, bias);
                 });
  }

  // What is done with the sums of one row of a tile.
  void finish(Kind kind, int row, int panel, int panels, const float* sums, const float* bias) {
    if (kind == kGateUp) {
      for (int n = 0; n < panels; n += 2) {
        const __m512 gate = rounded(_mm512_loadu_ps(sums + n * kPanel));
        const __m512 up = rounded(_mm512_loadu_ps(sums + (n + 1) * kPanel));
        const __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), gate));
        const __m512 silu = rounded(_mm512_div_ps(gate, _mm512_add_ps(e, _mm512_set1_ps(1.0f))));
        store16(gated_.row(row) + (panel + n) / 2 * kPanel, _mm512_mul_ps(silu, up));
      }
      return;
    }
    Value* out = (kind == kQkv ? projected_.row(row) : hidden_.row(row)) + panel * kPanel;
    for (int n = 0; n < panels; ++n) {
      __m512 sum = _mm512_loadu_ps(sums + n * kPanel);
      if (bias != nullptr) sum = _mm512_add_ps(sum, _mm512_loadu_ps(bias + (panel + n) * kPanel));
      if (kind != kQkv) sum = _mm512_add_ps(rounded(sum), load16(out + n * kPanel));
      store16(out + n * kPanel, sum);
    }
  }

  void head(float* logits, int32_t* highest) {
    const int rows = static_cast<int>(outputs_.size());
    if (rows == 0) return;
    for (int r = 0; r < rows; ++r)
      normalise_row(hidden_.row(outputs_[r].second), normed_.row(r), final_norm_.data(), c_.hidden);
    const size_t ld = c_.vocabulary;
    multiply_all(normed_, rows, head_, nullptr,
                 [&](int row, int panel, int count, int panels, const float* sums, int width) {
                   const size_t first = static_cast<size_t>(panel) * kPanel;
                   const size_t last = std::min(first + panels * kPanel, ld);
                   for (int r = 0; r < count; ++r)
                     std::memcpy(logits + outputs_[row + r].first * ld + first, sums + r * width,
                                 (last - first) * sizeof(float));
                 });
    pool_.run(rows, [&](int r) {
      const int output = outputs_[r].first;
      highest[output] = argmax(logits + output * ld, c_.vocabulary);
    });
  }

  // Keys of one layer and head in this page of a segment; the values follow.
  bf16* keys(const Segment& segment, int page, int layer, int head) const {
    const size_t block = static_cast<size_t>(2) * c_.head_dim * kPage;
    return reinterpret_cast<bf16*>(segment.pages[page]) +
           (static_cast<size_t>(layer) * c_.kv_heads + head) * block;
  }

  void rotate(Value* head, int position, const std::vector<float>& norm) const {
    if (!norm.empty()) normalise_row(head, head, norm.data(), c_.head_dim);
    const int half = c_.head_dim / 2;
    const bf16* cosines = cosines_.data() + static_cast<size_t>(position) * half;
    const bf16* sines = sines_.data() + static_cast<size_t>(position) * half;
    for (int k = 0; k < half; k += 8) {
      // Both halves in one vector: 8 of each.
      const __m128i one = _mm_loadu_si128(reinterpret_cast<const __m128i*>(cosines + k));
      const __m128i two = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sines + k));
      const __m512 x = load_halves(head + k, head + half + k);
      const __m512 turned = _mm512_xor_ps(
          _mm512_shuffle_f32x4(x, x, _MM_SHUFFLE(1, 0, 3, 2)),
          _mm512_castsi512_ps(_mm512_maskz_set1_epi32(0x00FF, static_cast<int>(0x80000000u))));
      const __m512 straight = rounded(_mm512_mul_ps(x, widen(_mm256_set_m128i(one, one))));
      const __m512 across = rounded(_mm512_mul_ps(turned, widen(_mm256_set_m128i(two, two))));
      store_halves(head + k, head + half + k, _mm512_add_ps(straight, across));
    }
  }

  // Rotate queries and key of one token and group of heads, and keep key and value.
  void store_token(const Layer& layer, int index, int row, int kv_head) {
    const Place& place = places_[row];
    const int width = c_.head_dim;
    Value* queries = projected_.row(row) + kv_head * group_ * width;
    for (int g = 0; g < group_; ++g) rotate(queries + g * width, place.position, layer.q_norm);
    Value* key = projected_.row(row) + (c_.heads + kv_head) * width;
    const Value* value = key + c_.kv_heads * width;
    rotate(key, place.position, layer.k_norm);
    const int slot = place.position % kPage;
    bf16* to = keys(*place.segment, place.position / kPage, index, kv_head);
    // Keys: panels of 16 tokens, as outputs. Values: panels of 16 dimensions, tokens as inputs.
    bf16* k_to = to + static_cast<size_t>(slot / kPanel) * width * kPanel + slot % kPanel * 2;
    for (int k = 0; k < width; ++k) k_to[k / 2 * 2 * kPanel + k % 2] = from_value(key[k]);
    bf16* v_to = to + static_cast<size_t>(width) * kPage + slot / 2 * 2 * kPanel + slot % 2;
    for (int k = 0; k < width; ++k)
      v_to[k / kPanel * kPage * kPanel + k % kPanel * 2] = from_value(value[k]);
  }

  void attend(const Layer& layer, int index) {
    const int tiles = static_cast<int>(tiles_.size());
    if (!stepping_)
      by_rows(static_cast<int>(places_.size()), 8, [&](int from, int to) {
        for (int row = from; row < to; ++row)
          for (int head = 0; head < c_.kv_heads; ++head) store_token(layer, index, row, head);
      });
    pool_.run(tiles, [&](int t) {
      const Tile& tile = tiles_[t];
      if (stepping_) store_token(layer, index, tile.first_place, tile.kv_head);
      attend_tile(index, tile, tiles_[std::min(t + 1, tiles - 1)]);
    });
  }

  void attend_tile(int index, const Tile& tile, const Tile& next) {
    const Segment& segment = *tile.segment;
    Attention::Query queries[kRows];
    for (int r = 0; r < tile.rows; ++r) {
      const int token = (tile.from + r) / group_, row = tile.first_place + token;
      const int at = (tile.kv_head * group_ + (tile.from + r) % group_) * c_.head_dim;
      queries[r] = {projected_.row(row) + at, attended_.row(row) + at, segment.start + token};
    }
    attention_.attend(
        queries, tile.rows,
        [&](int page) { return keys(segment, page, index, tile.kv_head); },
        keys(*next.segment, attention_.first_page(next.segment->start + next.from / group_), index,
             next.kv_head));
  }

  static constexpr int kRows = Attention::kRows;
  static constexpr size_t kPagesAtOnce = size_t{16} << 20;  // bytes

  Config c_;
  bool int8_;
  std::mutex busy_;
  int group_, qkv_;
  Attention attention_;
  std::vector<Layer> layers_;
  Pool pool_;
  std::unique_ptr<Memory> weights_;
  Panels head_;
  bf16* embedding_ = nullptr;
  std::vector<float> final_norm_;
  std::vector<bf16> cosines_, sines_;
  std::vector<std::unique_ptr<Memory>> memory_;  // of all pages
  std::vector<void*> free_, fresh_;              // fresh ones were never used
  std::vector<Place> places_;
  std::vector<Tile> tiles_;
  std::vector<std::pair<int, int>> outputs_;  // row of the logits, place
  bool stepping_ = false;
  int capacity_ = 0;
  Bytes::Buffer bytes_;
#if NATIVE_WORDS
  Words::Buffer words_;
#endif
  Rows hidden_, normed_, projected_, attended_, gated_;
};

}  // namespace NATIVE_LEVEL

#define NATIVE_JOIN(a, b) a##b
#define NATIVE_MAKE(level) NATIVE_JOIN(make_, level)
Step* NATIVE_MAKE(NATIVE_LEVEL)(const Config& config) {
  return new NATIVE_LEVEL::Model(config);
}

}  // namespace native
