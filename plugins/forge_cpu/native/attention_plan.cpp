#include <stdexcept>
#include <string>

#include "attention.hpp"

namespace forge {

namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Keys cost the more the more rows look at them, but loading them costs too: about as much as four rows.
double unit_cost(const AttentionUnit& unit) {
    const auto keys = static_cast<double>((unit.last_part - unit.first_part) * kPartition);
    return keys * static_cast<double>(unit.positions * unit.heads + 4);
}

// The tiles of one span, uncut.
void add_tiles(std::vector<AttentionUnit>& tiles, const AttentionShape& shape, std::int64_t span,
               std::int64_t first_row, std::int64_t rows, std::int64_t length) {
    const std::int64_t group = shape.heads / shape.kv_heads;
    const std::int64_t head_chunks = ceil_div(group, kAttentionRows);
    const std::int64_t heads_each = ceil_div(group, head_chunks);
    const std::int64_t positions_each = kAttentionRows / heads_each;
    for (std::int64_t row = 0; row < rows; row += positions_each) {
        AttentionUnit unit{};
        unit.span = span;
        unit.first_row = first_row + row;
        unit.first_position = length - rows + row;
        unit.positions = rows - row < positions_each ? rows - row : positions_each;
        const std::int64_t last = unit.first_position + unit.positions - 1;
        const std::int64_t hidden = unit.first_position + 1 - shape.window;
        unit.first_part = shape.window > 0 && hidden > 0 ? hidden / kPartition : 0;
        unit.last_part = last / kPartition + 1;
        unit.tile_part = unit.first_part;
        unit.partials = -1;
        for (std::int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
            for (std::int64_t head = 0; head < group; head += heads_each) {
                unit.first_head = kv_head * group + head;
                unit.heads = group - head < heads_each ? group - head : heads_each;
                tiles.push_back(unit);
            }
        }
    }
}

void check(const AttentionShape& shape, const std::int64_t* span_starts, const std::int64_t* lengths,
           std::int64_t spans) {
    if (shape.heads < 1 || shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0) {
        throw std::invalid_argument(std::to_string(shape.heads) + " heads can't share " +
                                    std::to_string(shape.kv_heads) + " KV heads");
    }
    if (shape.window < 0) throw std::invalid_argument("the window is negative");
    if (span_starts[0] != 0) throw std::invalid_argument("the first span doesn't begin at row 0");
    for (std::int64_t span = 0; span < spans; ++span) {
        const std::int64_t rows = span_starts[span + 1] - span_starts[span];
        if (rows < 0) throw std::invalid_argument("span " + std::to_string(span) + " ends before it begins");
        if (lengths[span] < rows) {
            throw std::invalid_argument("span " + std::to_string(span) + " has " + std::to_string(rows) +
                                        " rows in a sequence of " + std::to_string(lengths[span]));
        }
    }
}

}  // namespace

AttentionPlan plan_attention(const AttentionShape& shape, const std::int64_t* span_starts, const std::int64_t* lengths,
                             std::int64_t spans, int threads, std::int64_t most_partial_floats) {
    check(shape, span_starts, lengths, spans);
    AttentionPlan plan;
    plan.shape = shape;
    std::vector<AttentionUnit> tiles;
    for (std::int64_t span = 0; span < spans; ++span) {
        add_tiles(tiles, shape, span, span_starts[span], span_starts[span + 1] - span_starts[span], lengths[span]);
    }
    double total = 0;
    for (const auto& tile : tiles) total += unit_cost(tile);
    // A few units a worker, so that the last to finish isn't far behind the others.
    const double fair = total / (4.0 * threads);
    const std::int64_t row_floats = ceil_div(shape.v_dim, 16) * 16 + 16;
    for (auto& tile : tiles) {
        const std::int64_t parts = tile.last_part - tile.first_part;
        const std::int64_t floats = parts * tile.positions * tile.heads * row_floats;
        const auto wanted = static_cast<std::int64_t>(unit_cost(tile) / fair + 0.5);
        const std::int64_t pieces = wanted < parts ? wanted : parts;
        if (threads < 2 || pieces < 2 || plan.partial_floats + floats > most_partial_floats) {
            plan.units.push_back(tile);
            continue;
        }
        tile.partials = plan.partial_floats;
        plan.partial_floats += floats;
        plan.merges.push_back(tile);
        for (std::int64_t piece = 0; piece < pieces; ++piece) {
            AttentionUnit unit = tile;
            unit.first_part = tile.first_part + parts * piece / pieces;
            unit.last_part = tile.first_part + parts * (piece + 1) / pieces;
            plan.units.push_back(unit);
        }
    }
    return plan;
}

AttentionCall attention_call(const AttentionPlan& plan) {
    AttentionCall call{};
    call.shape = plan.shape;
    call.units = plan.units.data();
    call.unit_count = static_cast<std::int64_t>(plan.units.size());
    call.merges = plan.merges.data();
    call.merge_count = static_cast<std::int64_t>(plan.merges.size());
    return call;
}

}  // namespace forge
