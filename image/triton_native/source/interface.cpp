// The C interface, and which level of instructions a model gets; compiled for any x86-64.
#include "step.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

using native::Config;
using native::Segment;
using native::Step;

namespace {

constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
constexpr int kTileData = 18;

// Whether CPU and kernel let this process use tiles; asks the kernel for them.
bool tiles_allowed() {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const bool shown = (edx >> 24 & 1) && (edx >> 22 & 1);  // AMX-TILE, AMX-BF16
  return shown && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

extern "C" {

// Raise it when a function or a structure of this interface changes.
int32_t native_version() { return 6; }

// The best level whose instructions can run here, 0 for none. Whether tiles really work, as the
// flags say, only a process that tries them can tell.
int32_t native_level() {
#ifdef NATIVE_EMULATE
  return native::kAmx;
#endif
  __builtin_cpu_init();
  const bool basic = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                     __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (!basic) return 0;
  if (!__builtin_cpu_supports("avx512bf16"))
    return __builtin_cpu_supports("avx512vnni") ? native::kAvx512Vnni : native::kAvx512;
  return tiles_allowed() ? native::kAmx : native::kAvx512Bf16;
}

// Whether weights in int8 can be computed with.
int32_t native_int8() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512vnni");
}

int32_t native_page_tokens() { return native::kPage; }

Step* native_create(const Config* config, int32_t level) {
  try {
    switch (level) {
      case native::kAvx512: return native::make_avx512(*config);
      case native::kAvx512Vnni: return native::make_avx512_vnni(*config);
      case native::kAvx512Bf16: return native::make_avx512_bf16(*config);
      case native::kAmx: return native::make_amx(*config);
      default: return nullptr;
    }
  } catch (...) {
    return nullptr;
  }
}

void native_destroy(Step* model) { delete model; }

void native_set_weight(Step* model, int32_t kind, int32_t layer, int32_t part, int32_t first,
                       int32_t outputs, const uint16_t* from) {
  model->set_weight(kind, layer, part, first, outputs, from);
}

void native_set_vector(Step* model, int32_t kind, int32_t layer, int32_t length,
                       const uint16_t* from) {
  model->set_vector(kind, layer, length, from);
}

void native_set_rotation(Step* model, int32_t positions, const uint16_t* cosines,
                         const uint16_t* sines) {
  model->set_rotation(positions, cosines, sines);
}

uint64_t native_page_bytes(const Step* model) { return model->page_bytes(); }

void* native_new_page(Step* model) { return model->new_page(); }

// Whether a page was brought into memory, because fewer than `most` were there unused.
int32_t native_prepare_page(Step* model, uint64_t most) { return model->prepare_page(most); }

void native_free_page(Step* model, void* page) { model->free_page(page); }

void native_copy_page(const Step* model, const void* from, void* to, int32_t count) {
  model->copy_page(from, to, count);
}

// 0, or -1 when there is not enough memory.
int32_t native_forward(Step* model, const int32_t* tokens, const Segment* segments, int32_t count,
                       float* logits, int32_t* highest) {
  try {
    model->forward(tokens, segments, count, logits, highest);
    return 0;
  } catch (...) {
    return -1;
  }
}
}
