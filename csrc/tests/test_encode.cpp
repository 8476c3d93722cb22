// Encoders: the same bytes on every level and for any number of threads, and no more lost than the format
// must lose. That the bytes are those of the numpy encoders is tested from Python.
#include <string>
#include <vector>

#include "codec/encode.h"
#include "tests/test.h"

using namespace rwkv;
using namespace rwkv::test;
using codec::Request;

namespace {

struct Encoded {
    std::vector<uint8_t> q, cb;
    std::vector<int8_t> s;
    std::vector<float> d, largest;
    std::vector<double> error, power;
    bool operator==(const Encoded&) const = default;
};

Encoded encode(Request r, const std::vector<float>& w, int threads, const std::string& level) {
    Encoded out;
    const size_t rows = size_t(r.rows()), tiles = (rows + 15) / 16, groups = size_t(r.padded() / r.group);
    const bool tile = r.layout == Layout::kTile;
    // filled with junk, exactly as large as the parts are
    out.q.assign(tile ? tiles * 16 * r.code_bytes() : rows * r.stride(), 0xa5);
    out.s.assign(r.layout == Layout::kKn ? 0 : (tile ? tiles * 16 : rows) * groups, 0x55);
    out.d.assign(tile ? tiles * 16 : rows, -1.0f);
    out.cb.assign(16, 0);
    out.largest.assign(rows, -1.0f);
    out.error.assign(rows, -1.0);
    out.power.assign(rows, -1.0);
    r.w = w.data();
    r.q = out.q.data();
    r.s = out.s.data();
    r.d = out.d.data();
    r.cb = out.cb.data();
    r.row_error = out.error.data();
    r.row_power = out.power.data();
    r.row_largest = out.largest.data();
    codec::encode(r, threads, level);
    return out;
}

double relative_error(const Encoded& encoded) {
    double error = 0, power = 0;
    for (size_t i = 0; i < encoded.error.size(); ++i) {
        error += encoded.error[i];
        power += encoded.power[i];
    }
    return power > 0 ? error / power : 0;
}

} // namespace

TEST(encoders_agree_on_all_levels_and_threads) {
    unsigned seed = 900;
    for (const Encoding encoding : {Encoding::kQ8, Encoding::kQ4, Encoding::kQ6, Encoding::kQ5})
        for (const int group : {32, 16})
            for (const Layout layout : {Layout::kTile, Layout::kRow, Layout::kKn})
                for (const auto& [n, k] : {std::pair{1, 8}, {17, 24}, {33, 96}, {130, 40}, {3, 480}}) {
                    if (encoding == Encoding::kQ8 && group == 16)
                        continue;
                    std::vector<float> w = gaussian(size_t(n) * size_t(k), ++seed, 0.02f);
                    for (int i = 0; i < k; ++i)
                        w[size_t(n / 2) * size_t(k) + size_t(i)] = 0.0f; // a row of zeros
                    Request r;
                    r.n = n;
                    r.k = k;
                    r.encoding = encoding;
                    r.group = group;
                    r.layout = layout;
                    const Encoded first = encode(r, w, 1, "scalar");
                    const double limit = encoding == Encoding::kQ8   ? 6e-5
                                         : encoding == Encoding::kQ6 ? 8e-4
                                         : encoding == Encoding::kQ5 ? 3e-3
                                                                     : 1.2e-2,
                                 lost = relative_error(first);
                    CHECK(lost <= limit, "%d x %d loses %g", n, k, lost);
                    for (const auto* table : levels())
                        for (const int threads : {1, 3})
                            CHECK(encode(r, w, threads, std::string(table->name) + "!") == first,
                                  "%s, %d threads, %d x %d, layout %d, group %d", table->name, threads, n, k,
                                  int(layout), group);
                }
}

TEST(encoders_survive_extreme_weights) {
    for (const float magnitude : {0.0f, 1e-42f, 1e-31f, 1e-28f, 1e12f, 3e37f})
        for (const Encoding encoding : {Encoding::kQ8, Encoding::kQ4, Encoding::kQ6, Encoding::kQ5}) {
            std::vector<float> w = gaussian(20 * 70, 7, 1.0f);
            for (float& value : w)
                value *= magnitude;
            Request r;
            r.n = 20;
            r.k = 70;
            r.encoding = encoding;
            const Encoded encoded = encode(r, w, 2, "");
            for (const float d : encoded.d)
                CHECK(d >= 0 && d < 1e38f, "magnitude %g gives the row scale %g", double(magnitude),
                      double(d));
        }
}
