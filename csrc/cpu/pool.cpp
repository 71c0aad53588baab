#include "pool.h"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <mutex>
#include <unordered_map>

#ifdef __linux__
#include <pthread.h>
#include <sys/mman.h>
#else
#include <cstdlib>
#endif

namespace fused_preact {
namespace {

constexpr size_t HUGE_PAGE = 2 << 20, GRAIN = 64 << 10, LINE = 64;

constexpr size_t round_up(size_t bytes, size_t grain) { return (bytes + grain - 1) / grain * grain; }

// Blocks start at different places in a page: streams that begin alike would evict each other.
constexpr size_t COLOURS = 16, COLOUR = 17 * LINE;

struct Mapping {
    void* base;
    size_t bytes;
};

Mapping map(size_t bytes) {
#ifdef __linux__
    const size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : GRAIN;
    bytes = round_up(bytes, GRAIN);  // whole pages, of any size that Linux has
    char* raw = static_cast<char*>(mmap(nullptr, bytes + alignment, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (raw == MAP_FAILED) return {nullptr, 0};
    char* base = reinterpret_cast<char*>(round_up(uintptr_t(raw), alignment));
    if (base > raw) munmap(raw, base - raw);
    if (base + bytes < raw + bytes + alignment) munmap(base + bytes, raw + alignment - base);
    if (bytes >= HUGE_PAGE) madvise(base, bytes, MADV_HUGEPAGE);
    return {base, bytes};
#else
    return {std::malloc(bytes), bytes};
#endif
}

void unmap(Mapping m) {
#ifdef __linux__
    munmap(m.base, m.bytes);
#else
    std::free(m.base);
#endif
}

class Pool {
  public:
    std::mutex mutex;

    PoolBlock take(size_t size) {
        size = round_up(size, GRAIN);
        const size_t most = std::max(most_, used_ + size);
        // Exactly this size, or a new block while no more is held than was ever needed at once, and a quarter; then a larger one, and only
        // then what nobody has asked for longest goes back.
        size_t i = find(size, size);
        if (i == kept_.size() && used_ + kept_bytes_ + size > most + most / 4) i = find(size, 2 * size);
        if (i < kept_.size()) {
            const PoolBlock block = kept_[i];
            kept_.erase(kept_.begin() + i);
            kept_bytes_ -= block.size;
            used_ += block.size;
            most_ = std::max(most_, used_);
            return block;
        }
        while (!kept_.empty() && used_ + kept_bytes_ + size > most + most / 4) release_oldest();
        Mapping m = map(size + COLOURS * COLOUR + LINE);
        if (!m.base) {
            while (!kept_.empty()) release_oldest();
            m = map(size + COLOURS * COLOUR + LINE);
            if (!m.base) return {nullptr, 0};
        }
        void* data = reinterpret_cast<void*>(round_up(uintptr_t(m.base), LINE) + next_colour_++ % COLOURS * COLOUR);
        mappings_[data] = m;
        used_ += size;
        most_ = most;
        return {data, size};
    }

    void give(PoolBlock block) {
        used_ -= block.size;
        kept_.push_back(block);
        kept_bytes_ += block.size;
    }

    PoolUse use() const { return {used_, kept_bytes_}; }

    void release() {
        while (!kept_.empty()) release_oldest();
        most_ = used_;
    }

  private:
    // The block of low to high bytes that was kept last: it may still be in a cache.
    size_t find(size_t low, size_t high) const {
        for (size_t i = kept_.size(); i-- > 0;)
            if (kept_[i].size >= low && kept_[i].size <= high) return i;
        return kept_.size();
    }

    void release_oldest() {
        const PoolBlock block = kept_.front();
        kept_.pop_front();
        kept_bytes_ -= block.size;
        unmap(mappings_[block.data]);
        mappings_.erase(block.data);
    }

    std::deque<PoolBlock> kept_;
    std::unordered_map<void*, Mapping> mappings_;
    size_t used_ = 0, kept_bytes_ = 0, most_ = 0, next_colour_ = 0;
};

// Never destroyed: tensors may die after it would be. A fork waits until nobody holds the lock, or the child could never take it.
Pool& pool() {
    static Pool* one = [] {
#ifdef __linux__
        pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });
#endif
        return new Pool;
    }();
    return *one;
}

}  // namespace

PoolBlock pool_take(size_t size) {
    std::lock_guard<std::mutex> lock(pool().mutex);
    return pool().take(size);
}

void pool_give(PoolBlock block) {
    std::lock_guard<std::mutex> lock(pool().mutex);
    pool().give(block);
}

PoolUse pool_use() {
    std::lock_guard<std::mutex> lock(pool().mutex);
    return pool().use();
}

void pool_release() {
    std::lock_guard<std::mutex> lock(pool().mutex);
    pool().release();
}

}  // namespace fused_preact
