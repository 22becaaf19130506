// What every level of instructions offers: the forward pass of one model, and how it is filled.
#pragma once

#include <cstddef>
#include <cstdint>

namespace native {

using bf16 = uint16_t;

constexpr int kPage = 32;    // tokens of a page of keys and values
constexpr int kPanel = 16;   // outputs of one panel of weights

// The numbers are those of weights.py.
enum Kind { kQkv, kOut, kGateUp, kDown, kHead, kKinds };
enum VectorKind { kInputNorm, kPostNorm, kFinalNorm, kQNorm, kKNorm, kBias };
enum Precision { kBf16, kInt8 };

struct Config {
  int32_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary, window, threads;
  int32_t separate_embedding, precision;
  float epsilon, scale;
};

struct Segment {
  const uint64_t* pages;
  int32_t start;   // tokens before the new ones
  int32_t count;   // new tokens
  int32_t output;  // row of the logits for the last token, -1 for none
  int32_t unused;
};

class Step {
 public:
  virtual ~Step() = default;
  virtual void set_weight(int kind, int layer, int part, int first, int outputs,
                          const bf16* from) = 0;
  virtual void set_vector(int kind, int layer, int length, const bf16* from) = 0;
  virtual void set_rotation(int positions, const bf16* cosines, const bf16* sines) = 0;
  virtual size_t page_bytes() const = 0;
  virtual void* new_page() = 0;
  virtual bool prepare_page(size_t most) = 0;
  virtual void free_page(void* page) = 0;
  virtual void copy_page(const void* from, void* to, int count) const = 0;
  // `highest` gets, for each row of the logits, the token with the largest; -1 where they are no
  // numbers.
  virtual void forward(const int32_t* tokens, const Segment* segments, int count, float* logits,
                       int32_t* highest) = 0;
};

// Levels of instructions, each better than those before it.
enum Level { kAvx512 = 1, kAvx512Vnni = 2, kAvx512Bf16 = 3, kAmx = 4 };

Step* make_avx512(const Config& config);
Step* make_avx512_vnni(const Config& config);
Step* make_avx512_bf16(const Config& config);
Step* make_amx(const Config& config);

}  // namespace native
