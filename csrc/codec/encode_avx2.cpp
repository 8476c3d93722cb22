#include "codec/encode_inl.h"

namespace rwkv::codec {

const EncodeTable* avx2_encode_table() {
    static constexpr EncodeTable table = make_table("avx2");
    return &table;
}

} // namespace rwkv::codec
