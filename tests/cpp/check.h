#pragma once

// The frame of the tests that need neither Python nor torch: a test is a function that throws where something is wrong.

#include <cstdio>
#include <exception>
#include <initializer_list>
#include <source_location>
#include <stdexcept>
#include <string>

namespace demiurgic::test {

inline void check(bool holds, const std::string& what, std::source_location place = std::source_location::current()) {
    if (holds) return;
    throw std::runtime_error(std::string(place.file_name()) + ":" + std::to_string(place.line()) + ": " + what);
}

struct Test {
    const char* name;
    void (*run)();
};

// For main: 0 where all pass. An argument of the program: only the tests with it in their name.
inline int run_tests(std::initializer_list<Test> tests, const char* part_of_name) {
    int num_failed = 0;
    for (const Test& test : tests) {
        if (part_of_name && std::string(test.name).find(part_of_name) == std::string::npos) continue;
        try {
            test.run();
            std::printf("ok      %s\n", test.name);
        } catch (const std::exception& error) {
            ++num_failed;
            std::printf("FAILED  %s\n        %s\n", test.name, error.what());
        }
        std::fflush(stdout);
    }
    return num_failed > 0;
}

}  // namespace demiurgic::test
