// A weight matrix in its packed form: segments of different encodings stacked along the output.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "layout.hpp"

namespace forge {

struct Worker;

class Matrix {
public:
    // Encodings by GGUF name with the number of output rows each; all share `cols` inputs. Throws std::invalid_argument
    // on an unknown name or sizes that don't fit the encoding, std::bad_alloc.
    Matrix(const std::vector<std::pair<std::string, int64_t>>& segments, int64_t cols);

    // Packs rows [row, row + count) of a segment from the bytes of a GGUF file; called by all workers. `row` is a
    // multiple of 16, and so is `count` unless these are the segment's last rows.
    void pack(Worker& worker, int segment, int64_t row, int64_t count, const uint8_t* data);

    // Throws std::invalid_argument where pack() must not be called so.
    void check_pack(int segment, int64_t row, int64_t count, int64_t bytes_a_row) const;

    // One row of the matrix as floats, exactly as the encoding defines them.
    void dequantize_row(int64_t row, float* out) const;

    MatrixView view() const;
    int64_t rows() const { return rows_; }
    int64_t cols() const { return cols_; }
    int64_t bytes() const { return bytes_; }
    bool any_quantised() const;
    bool any_float() const;

private:
    std::vector<Segment> segments_;
    int64_t rows_ = 0, cols_, bytes_ = 0;
    std::shared_ptr<uint8_t> memory_;
};

// Bytes of one row of `cols` inputs in a file.
int64_t file_row_bytes(Encoding encoding, int64_t cols);

// One panel: up to 16 rows, `stride` bytes apart, into the packed form; missing rows stay as they are. (pack.cpp)
void pack_panel(Encoding encoding, int64_t cols, const uint8_t* rows, int64_t stride, int count, uint8_t* panel);
// Row r of a packed panel as floats. (unpack.cpp)
void unpack_row(Encoding encoding, int64_t cols, const uint8_t* panel, int r, float* out);

}  // namespace forge
