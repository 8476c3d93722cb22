// What an encoder does once per CPU level. The caller owns all memory; nothing here allocates or throws.
#pragma once

#include "codec/encode.h"

namespace rwkv::codec {

/// Rows that are worked on side by side, one per lane.
constexpr int kLanes = 16;

/// 16 ascending entries and the 15 midpoints between them. A mirrored one (kQ5) has entries from 0 up, and
/// for each m of them -1 - m as well; midpoints are those of the distances from -1/2 then.
struct Codebook {
    float entry[16];
    float middle[15];
    bool mirrored = false;
};

struct EncodeTable {
    const char* name;
    /// Rows [16 block, 16 block + 16) of `request`; scratch: 16 floats for every group of a row. `book`: kQ4
    /// and kQ5 only.
    void (*encode_block)(const Request& request, const Codebook& book, int block, float* scratch);
    /// One round of learning for the same rows of `sample` [rows, length] (within -1..1), whose columns count
    /// as `importance` [length] says (null: alike): the code of the level that each weight is nearest to, and
    /// the scale [rows, groups] of each group.
    void (*assign_block)(const float* sample, int rows, int length, int group, const float* importance,
                         const Codebook& book, int block, uint8_t* index, float* scale);
};

const EncodeTable* scalar_encode_table();
const EncodeTable* avx2_encode_table();
const EncodeTable* avxvnni_encode_table();
const EncodeTable* avx512_encode_table();

} // namespace rwkv::codec
