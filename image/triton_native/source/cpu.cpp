// What this CPU and its kernel can do; compiled for any x86-64.
#include <cstdint>

extern "C" {

// Whether the instructions that the other files use can run here.
int32_t native_supported() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2");
}
}
