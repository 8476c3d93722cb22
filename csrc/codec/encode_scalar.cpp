#include "codec/encode_inl.h"

namespace rwkv::codec {

const EncodeTable* scalar_encode_table() {
    static constexpr EncodeTable table = make_table("scalar");
    return &table;
}

} // namespace rwkv::codec
