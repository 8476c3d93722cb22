// One table per level; a level's file exists in the build only when the compiler knows its flags.
#pragma once

#include "cpu/kernels.h"

namespace rwkv::cpu {

const KernelTable* scalar_table();
const KernelTable* avx2_table();
const KernelTable* avxvnni_table();
const KernelTable* avx512_table();
const KernelTable* neon_table();
const KernelTable* dotprod_table();
const KernelTable* i8mm_table();

} // namespace rwkv::cpu
