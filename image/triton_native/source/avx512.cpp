// The step for CPUs with AVX512 that have no instructions for bf16.
#define NATIVE_LEVEL avx512
#define NATIVE_BF16 0
#define NATIVE_TILES 0
#define NATIVE_WORDS 0
#include "llama.h"
