// Files whose pages a thread meets in advance: it may end before, with or after the object that asked for it.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <system_error>
#include <thread>

#include "core/mapped_file.h"
#include "tests/model_writer.h"
#include "tests/test.h"

using namespace rwkv;

TEST(pages_are_met_while_a_file_is_read_and_after_it_is_gone) {
    constexpr size_t kBytes = size_t(48) << 20;
    const std::string path = test::temporary() + ".pages";
    {
        std::ofstream file(path, std::ios::binary);
        file.seekp(std::streamoff(kBytes - 1));
        file.put(7);
    }
    for (int repeat = 0; repeat < 8; ++repeat) {
        MappedFile file(path);
        file.populate();
        if (repeat % 2)
            continue; // unmapped at once
        const uint8_t* bytes = file.range(0, kBytes);
        uint64_t sum = 0;
        for (size_t at = 4095; at < kBytes; at += 4096)
            sum += bytes[at];
        CHECK(sum == 7);
    }
    std::error_code in_use; // Windows keeps a file while a thread has it mapped
    for (int tries = 0; tries < 1000 && !std::filesystem::remove(path, in_use); ++tries)
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    CHECK(!std::filesystem::exists(path));
}
