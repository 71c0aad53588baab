// What every part of the simulator knows: sizes of a launch, how it is run, what is counted.
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptxsim {

constexpr int LANES = 32;

struct Dim {
    unsigned x = 1, y = 1, z = 1;

    long count() const { return long(x) * y * z; }
};

// In which order threads and blocks take turns. The checks do not depend on it; results of a racy kernel do.
enum class Order { forward, reverse, random };

struct Config {
    Order order = Order::forward;
    uint64_t seed = 1;
    // Whether cp.async copies at once, or as late as the program allows.
    bool copies_at_once = false;
    bool checks = true;
};

struct Traffic {
    long sectors = 0, ideal = 0;  // of 32 bytes
};

struct Counters {
    long instructions = 0, mma = 0;  // of warps
    long shared_wavefronts = 0, shared_ideal = 0;
    std::map<std::string, Traffic> global;  // by allocation
};

// What the program did wrong, in sentences with the kernel's name and the source line.
struct Violation : std::runtime_error {
    using runtime_error::runtime_error;
};

// PTX that the simulator does not know; never guessed.
struct Unsupported : std::runtime_error {
    explicit Unsupported(const std::string& what) : runtime_error("unsupported PTX: " + what) {}
};

}  // namespace ptxsim
