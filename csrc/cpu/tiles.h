// How work is cut: the one place that chooses tile sizes.
#pragma once
#include "arena.h"
#include "plane.h"
#include "records.h"

namespace fused_preact::FUSED_PREACT_ISA {

// Fewer threads for little work: waking one and waiting for it takes as long as this many multiply-adds, or elements read or written.
constexpr int64_t THREAD_MACS = 1 << 20, THREAD_ELEMENTS = 1 << 15;

INLINE int threads_for(int64_t work, int64_t each, int threads) { return int(larger<int64_t>(1, smaller<int64_t>(threads, work / each))); }

INLINE int threads_for(const Conv& conv, int threads) {
    return threads_for(conv.n * conv.h.out * conv.w.out * conv.k * conv.c / conv.groups * conv.h.kernel * conv.w.kernel, THREAD_MACS, threads);
}

struct Tile {
    Span images, rows, columns;  // of the output

    INLINE int64_t pixels() const { return images.count * rows.count * columns.count; }
};

struct Tiling {
    int64_t images, height, width, each, rows, columns;  // in all, and of a tile

    INLINE int64_t down() const { return ceil_div(height, rows); }
    INLINE int64_t across() const { return ceil_div(width, columns); }
    INLINE int64_t count() const { return height && width ? ceil_div(images, each) * down() * across() : 0; }
    INLINE int64_t most_pixels() const { return each * rows * columns; }
    INLINE Tile operator[](int64_t i) const {
        const int64_t column = i % across() * columns, row = i / across() % down() * rows, image = i / across() / down() * each;
        return {{image, smaller(each, images - image)}, {row, smaller(rows, height - row)}, {column, smaller(columns, width - column)}};
    }
};

// A 1x1 convolution that moves nothing is one over a single row of all pixels: its tiles need not end where images do.
INLINE Conv flattened(Conv conv) {
    auto pointwise = [](const Axis& a) { return a.kernel == 1 && a.stride == 1 && a.padding == 0; };
    if (pointwise(conv.h) && pointwise(conv.w)) {
        int64_t pixels = conv.n * conv.h.in * conv.w.in;
        conv.n = 1;
        conv.h = {1, 1, 1, 0, 1, 1};
        conv.w = {pixels, 1, 1, 0, 1, pixels};
    }
    return conv;
}

constexpr int64_t PLANE_BYTES = 128 << 10, L2_BYTES = 512 << 10;

// plane_bytes: of all planes in a pixel; weights: bytes of the packed weights. Planes may outgrow L1, for a block reads them panel by panel;
// tiles that fit it would add up dweight twice as often. Where the weights do not stay in L2, still larger tiles use them more often.
INLINE Tiling tiling_of(const Conv& conv, int64_t plane_bytes, int64_t weights, int threads) {
    bool big = weights > L2_BYTES / 2;
    int64_t budget = big ? L2_BYTES : PLANE_BYTES, most = big ? 256 : conv.h.out == 1 ? 128 : 256;
    int64_t columns = conv.w.out, rows = 1;
    if (conv.h.out == 1 || columns > 256) {
        int64_t pixels = larger<int64_t>(32, smaller(most, budget / plane_bytes / 8 * 8));
        int64_t tiles = larger<int64_t>(ceil_div(columns, pixels), conv.n == 1 && conv.h.out == 1 ? threads : 1);
        columns = smaller(columns, round_up(ceil_div(columns, tiles), ROWS));
    } else {
        int64_t width = (columns - 1) * conv.w.stride + (conv.w.kernel - 1) * conv.w.dilation + 1;
        auto bytes = [&](int64_t r) { return ((r - 1) * conv.h.stride + (conv.h.kernel - 1) * conv.h.dilation + 1) * width * plane_bytes; };
        while (rows < conv.h.out && ((rows + 1) * columns <= 64 || ((rows + 1) * columns <= most && bytes(rows + 1) <= budget))) ++rows;
        int64_t tiles = larger(ceil_div(conv.h.out, rows), smaller<int64_t>(conv.h.out, ceil_div(threads, conv.n)));
        rows = ceil_div(conv.h.out, tiles);
    }
    return {conv.n, conv.h.out, conv.w.out, 1, rows, columns};
}

// Wide layers: of so many weights that neither they nor the sums of their gradient stay in L2 beside everything else.
constexpr int64_t WIDE_WEIGHTS = 96 << 10, WIDE_PIXELS = 1024, WIDE_BYTES = 4 << 20;

INLINE bool is_wide(const Conv& conv) { return conv.k / conv.groups * (conv.c / conv.groups) * conv.h.kernel * conv.w.kernel > WIDE_WEIGHTS; }

// All threads work on one tile of such a layer, so it should be large: rows of an image, a whole one, or several. image_bytes(tiling): what an
// image of a tile takes in scratch, halo included.
template <class Bytes>
INLINE Tiling wide_tiling_of(const Conv& conv, Bytes&& image_bytes) {
    Tiling tiling{conv.n, conv.h.out, conv.w.out, 1, 1, 1};
    if (tiling.count() == 0) return tiling;
    auto even = [](int64_t total, int64_t most) { return ceil_div(total, ceil_div(total, larger<int64_t>(1, smaller(total, most)))); };
    tiling.columns = even(conv.w.out, WIDE_PIXELS);
    tiling.rows = even(conv.h.out, WIDE_PIXELS / tiling.columns);
    while (tiling.rows > 1 && image_bytes(tiling) > WIDE_BYTES) tiling.rows = even(conv.h.out, tiling.rows / 2);
    while (tiling.columns > 1 && image_bytes(tiling) > WIDE_BYTES) tiling.columns = even(conv.w.out, tiling.columns / 2);
    if (tiling.rows == conv.h.out && tiling.columns == conv.w.out)
        tiling.each = even(conv.n, smaller(WIDE_PIXELS / tiling.most_pixels(), WIDE_BYTES / image_bytes(tiling)));
    return tiling;
}

// The pixels of a tile, image by image and row by row: where each lies in the planes (elements) and in memory (pixels), from the tile's first.
struct Pixels {
    int32_t *plane, *memory;
    int64_t count, images, rows, columns;

    INLINE Pixels(Arena& arena, int64_t capacity) : count(0), images(-1), rows(-1), columns(-1) {
        plane = arena.take<int32_t>(round_up(capacity, 2 * ROWS));
        memory = arena.take<int32_t>(round_up(capacity, 2 * ROWS));
    }

    // Of an image, a row, a column.
    struct Steps {
        int64_t image, row, column;
    };

    // Blocks of ROWS are computed whole: the last pixel repeats.
    void set(int64_t images_, int64_t rows_, int64_t columns_, Steps in_plane, Steps in_memory) {
        if (images == images_ && rows == rows_ && columns == columns_) return;
        images = images_, rows = rows_, columns = columns_, count = images * rows * columns;
        int64_t at = 0;
        for (int64_t n = 0; n < images; ++n)
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < columns; ++j, ++at) {
                    plane[at] = int32_t(n * in_plane.image + i * in_plane.row + j * in_plane.column);
                    memory[at] = int32_t(n * in_memory.image + i * in_memory.row + j * in_memory.column);
                }
        for (; at < round_up(count, 2 * ROWS) && count; ++at) plane[at] = plane[count - 1];
    }
};

}  // namespace fused_preact::FUSED_PREACT_ISA
