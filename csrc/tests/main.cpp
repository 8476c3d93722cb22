// Runs the tests whose name contains the argument, or all.
#include "tests/test.h"

int main(int argc, char** argv) {
    using namespace rwkv::test;
    for (const Test& test : tests()) {
        if (argc > 1 && !std::strstr(test.name, argv[1]))
            continue;
        const int before = failures();
        test.run();
        std::printf("%-40s %s\n", test.name, failures() == before ? "ok" : "FAILED");
        std::fflush(stdout);
    }
    std::printf("%d failures\n", failures());
    return failures() != 0;
}
