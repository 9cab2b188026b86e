// Sizes, memory and checks of packed matrices; the formats themselves are in pack.cpp and unpack.cpp.
#include "matrix.hpp"

#include <algorithm>
#include <stdexcept>

#include "memory.hpp"
#include "pool.hpp"

namespace forge {
namespace {

const EncodingInfo& info_of(Encoding encoding) { return kEncodingInfo[static_cast<int>(encoding)]; }

Encoding encoding_named(const std::string& name) {
    std::string known;
    for (int i = 0; i < kEncodings; ++i) {
        if (name == kEncodingInfo[i].name) return static_cast<Encoding>(i);
        known += std::string(known.empty() ? "" : ", ") + kEncodingInfo[i].name;
    }
    throw std::invalid_argument("no kernel for encoding '" + name + "'; there are: " + known);
}

constexpr int64_t kMostInSide = int64_t{1} << 31;  // far beyond any model; keeps products of sizes in 64 bits

}  // namespace

int64_t file_row_bytes(Encoding encoding, int64_t cols) {
    return cols / info_of(encoding).file_block * info_of(encoding).file_bytes;
}

Matrix::Matrix(const std::vector<std::pair<std::string, int64_t>>& segments, int64_t cols) : cols_(cols) {
    if (segments.empty()) throw std::invalid_argument("a matrix has at least one segment");
    if (cols < 1 || cols > kMostInSide)
        throw std::invalid_argument("a matrix can't have " + std::to_string(cols) + " inputs");
    int64_t panels = 0;
    for (const auto& [name, rows] : segments) {
        const Encoding encoding = encoding_named(name);
        const EncodingInfo& info = info_of(encoding);
        if (rows < 1 || rows > kMostInSide - rows_)
            throw std::invalid_argument("a segment can't have " + std::to_string(rows) + " rows");
        if (cols % info.file_block != 0)
            throw std::invalid_argument(name + " comes in blocks of " + std::to_string(info.file_block) +
                                        " inputs, which " + std::to_string(cols) + " isn't a multiple of");
        const int64_t panel_bytes = (cols + info.group - 1) / info.group * info.group_bytes;
        const int64_t count = (rows + kPanelRows - 1) / kPanelRows;
        segments_.push_back({encoding, rows, rows_, panels, count, panel_bytes, nullptr});
        rows_ += rows;
        panels += count;
        bytes_ += count * panel_bytes;
    }
    memory_ = allocate_weights(static_cast<size_t>(bytes_));
    uint8_t* at = memory_.get();
    for (Segment& segment : segments_) {
        segment.data = at;
        at += segment.panels * segment.panel_bytes;
    }
}

void Matrix::check_pack(int segment, int64_t row, int64_t count, int64_t bytes_a_row) const {
    if (segment < 0 || segment >= static_cast<int>(segments_.size()))
        throw std::invalid_argument("there is no segment " + std::to_string(segment));
    const Segment& into = segments_[static_cast<size_t>(segment)];
    if (row < 0 || row % kPanelRows != 0 || count < 1 || row > into.rows || count > into.rows - row)
        throw std::invalid_argument("rows " + std::to_string(row) + " to " + std::to_string(row + count) +
                                    " aren't whole panels of 16 within a segment of " + std::to_string(into.rows));
    if (count % kPanelRows != 0 && row + count != into.rows)
        throw std::invalid_argument("only the last rows of a segment may be fewer than a multiple of 16");
    if (bytes_a_row != file_row_bytes(into.encoding, cols_))
        throw std::invalid_argument(std::string("a row of ") + info_of(into.encoding).name + " has " +
                                    std::to_string(file_row_bytes(into.encoding, cols_)) + " bytes, not " +
                                    std::to_string(bytes_a_row));
}

void Matrix::pack(Worker& worker, int segment, int64_t row, int64_t count, const uint8_t* data) {
    const Segment& into = segments_[static_cast<size_t>(segment)];
    const int64_t stride = file_row_bytes(into.encoding, cols_);
    const int64_t first = row / kPanelRows, panels = (count + kPanelRows - 1) / kPanelRows;
    worker.share(panels, 4, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
            const int64_t done = panel * kPanelRows;
            pack_panel(into.encoding, cols_, data + done * stride, stride,
                       static_cast<int>(std::min<int64_t>(kPanelRows, count - done)),
                       into.data + (first + panel) * into.panel_bytes);
        }
    });
}

void Matrix::dequantize_row(int64_t row, float* out) const {
    for (const Segment& segment : segments_) {
        const int64_t inside = row - segment.first_row;
        if (inside >= segment.rows) continue;
        unpack_row(segment.encoding, cols_, segment.data + inside / kPanelRows * segment.panel_bytes,
                   static_cast<int>(inside % kPanelRows), out);
        return;
    }
}

bool Matrix::any_quantised() const {
    return std::ranges::any_of(segments_, [](const Segment& s) { return info_of(s.encoding).quantised; });
}

bool Matrix::any_float() const {
    return std::ranges::any_of(segments_, [](const Segment& s) { return !info_of(s.encoding).quantised; });
}

MatrixView Matrix::view() const {
    const Segment& last = segments_.back();
    return {segments_.data(), static_cast<int>(segments_.size()), rows_, cols_, last.first_panel + last.panels,
            any_quantised()};
}

}  // namespace forge
