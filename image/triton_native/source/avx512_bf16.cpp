// The step for CPUs with AVX512-BF16.
#define NATIVE_LEVEL avx512_bf16
#define NATIVE_BF16 1
#define NATIVE_TILES 0
#define NATIVE_WORDS 0
#include "llama.h"
