// The step for CPUs with AMX for bf16.
#define NATIVE_LEVEL amx
#define NATIVE_BF16 1
#define NATIVE_TILES 1
#define NATIVE_WORDS 0
#include "llama.h"
