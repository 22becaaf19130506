// Whether a level computes here what the first one computes: flags can promise what a virtual
// machine does not keep.
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "step.h"

namespace {

using native::bf16;
using native::Config;
using native::Segment;
using native::Step;

constexpr int kHidden = 64, kHeads = 2, kWidth = 32, kMiddle = 96, kWords = 48, kTokens = 37;

bf16 cut(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<bf16>(bits >> 16);
}

class Numbers {
 public:
  std::vector<bf16> make(int count) {
    std::vector<bf16> made(count);
    for (bf16& one : made) {
      state_ = state_ * 1664525u + 1013904223u;
      one = cut(static_cast<float>(state_ >> 8) / 8388608.0f - 1.0f);
    }
    return made;
  }

 private:
  uint32_t state_ = 1;
};

// The logits after a prompt and after one token more, alone.
std::vector<float> logits(Step* step) {
  Numbers numbers;
  auto weight = [&](int kind, int part, int first, int outputs, int inputs) {
    step->set_weight(kind, 0, part, first, outputs, numbers.make(outputs * inputs).data());
  };
  auto vector = [&](int kind, int layer, int length) {
    step->set_vector(kind, layer, length, numbers.make(length).data());
  };
  weight(native::kQkv, 0, 0, 2 * kHeads * kWidth, kHidden);
  weight(native::kQkv, 0, 2 * kHeads * kWidth, kHeads * kWidth, kHidden);
  weight(native::kOut, 0, 0, kHidden, kHeads * kWidth);
  weight(native::kGateUp, 0, 0, kMiddle, kHidden);
  weight(native::kGateUp, 1, 0, kMiddle, kHidden);
  weight(native::kDown, 0, 0, kHidden, kMiddle);
  weight(native::kHead, 0, 0, kWords, kHidden);
  vector(native::kInputNorm, 0, kHidden);
  vector(native::kPostNorm, 0, kHidden);
  vector(native::kFinalNorm, -1, kHidden);
  const auto angles = numbers.make((kTokens + 1) * kWidth);
  step->set_rotation(kTokens + 1, angles.data(), angles.data() + (kTokens + 1) * kWidth / 2);
  std::vector<int32_t> tokens(kTokens);
  for (int i = 0; i < kTokens; ++i) tokens[i] = i * 7 % kWords;
  std::vector<uint64_t> pages;
  for (int i = 0; i <= kTokens; i += native::kPage)
    pages.push_back(reinterpret_cast<uint64_t>(step->new_page()));
  std::vector<float> found(2 * kWords);
  int32_t highest = 0;
  const Segment prompt{pages.data(), 0, kTokens, 0, 0}, more{pages.data(), kTokens, 1, 0, 0};
  step->forward(tokens.data(), &prompt, 1, found.data(), &highest);
  step->forward(tokens.data(), &more, 1, found.data() + kWords, &highest);
  for (uint64_t page : pages) step->free_page(reinterpret_cast<void*>(page));
  return found;
}

}  // namespace

extern "C" {

Step* native_create(const Config* config, int32_t level);

// Whether this level works; where its instructions do not, the process may end.
int32_t native_check(int32_t level) {
  const Config config{1, kHidden, kHeads, kHeads, kWidth, kMiddle, kWords, 0, 1, 0,
                      native::kBf16, 1e-5f, 0.2f};
  const std::unique_ptr<Step> plain(native_create(&config, native::kAvx512));
  const std::unique_ptr<Step> other(native_create(&config, level));
  if (plain == nullptr || other == nullptr) return 0;
  const auto expected = logits(plain.get()), found = logits(other.get());
  double off = 0.0, size = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    off += std::pow(found[i] - expected[i], 2);
    size += std::pow(expected[i], 2);
  }
  return size > 0.0 && off < 1e-3 * size;
}
}
