// SPDX-License-Identifier: Apache-2.0
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "attention_kernels.h"
#include "kernels.h"
#include "team.h"

namespace specdec {
namespace {

constexpr int64_t kUnitRows = 256;          // packed rows that stay in the second-level cache with a tile
constexpr int64_t kSplit = 512;             // positions of the prefix in one split, at least
constexpr int64_t kMaxSplits = 32;          // of one prefix
constexpr int64_t kPartials = 1280 * 1024;  // bytes that a worker keeps of splits not yet merged
constexpr int64_t kLine = 16;               // floats of a cache line
constexpr float kLog2E = 1.44269504f;

struct Request {
  int64_t begin = 0, nodes = 0;  // rows of the batch
  int64_t prefix = 0;
  int64_t splits = 0, split_tiles = 1;
  int64_t unit_nodes = 1;
};

// The nodes of a request that one worker takes, for one head of the cache if their rows are packed, else for
// `heads` of them, whose bytes often are neighbours.
struct Unit {
  int64_t request, head, heads, first_node, nodes;
};

struct Bounds {
  int64_t lowest, highest;
};

// Where a tile's rows lie. A position without a page, or outside every row's window, has no bit in `seen` and
// a row of zeros.
struct Places {
  const void* rows[2 * kTile];  // keys, then values
  int64_t count = 0;
  uint64_t seen = 0;

  const void** keys() { return rows; }
  const void** values() { return rows + kTile; }
  void clear(int64_t n, const void* zeros) {
    count = n;
    seen = 0;
    for (const void*& row : rows) row = zeros;
  }
};

// Memory of one thread. `own` is for the unit that it works on, the rest for the tile that it works on, which
// may be another's.
struct Scratch {
  float *queries, *partials, *total, *rows, *node_query, *node_seen;
  float *key_rows, *value_panels, *scores;
  std::vector<int32_t> chain;  // nodes from the root, or the window's first, to one node; by depth
};

class Attention {
 public:
  Attention(const AttentionArgs& args, int threads)
      : a_(args),
        k_(*kernels().attention),
        group_(args.heads > 0 ? args.query_heads / args.heads : 0),
        head_pad_(padded(args.head, kPanel)),
        value_pad_(padded(args.value_size, kPanel)),
        by_slots_(!args.deterministic && args.key.dtype == args.value.dtype && args.head == head_pad_ &&
                  args.value_size == value_pad_),
        zeros_(4 * std::max(head_pad_, value_pad_), 0) {
    plan(threads);
  }

  void run() {
    clear_unowned_rows();
    if (units_.empty()) return;
    reserve();
    Team team(threads_);
    team.items(static_cast<int64_t>(units_.size()), 1,
               [&](Worker& worker, int64_t item) { attend(worker, units_[item]); });
  }

 private:
  // --- What there is to do ---

  void plan(int threads) {
    int64_t end = 0, work = 0, all_splits = 0;
    requests_.resize(a_.requests);
    depths_.assign(a_.rows, 0);
    const int64_t most = std::min(a_.max_prefix, a_.table_width * a_.page_size);
    const int64_t unit_nodes = std::max<int64_t>(kUnitRows / std::max<int64_t>(group_, 1), 1);
    for (int64_t b = 0; b < a_.requests; ++b) {
      Request& r = requests_[b];
      // Offsets out of order give empty requests, never rows of two.
      r.begin = std::clamp<int64_t>(a_.cu_nodes[b], end, a_.rows);
      end = std::clamp<int64_t>(a_.cu_nodes[b + 1], r.begin, a_.rows);
      r.nodes = end - r.begin;
      r.prefix = std::clamp<int64_t>(a_.prefix_lens[b], 0, std::max<int64_t>(most, 0));
      const int64_t tiles = (r.prefix + kTile - 1) / kTile;
      const int64_t splits = std::clamp<int64_t>((r.prefix + kSplit - 1) / kSplit, 1, kMaxSplits);
      r.split_tiles = std::max<int64_t>((tiles + splits - 1) / splits, 1);
      r.splits = (tiles + r.split_tiles - 1) / r.split_tiles;
      for (int64_t i = 0; i < r.nodes; ++i) {
        const int64_t parent = parent_of(r, i);
        depths_[r.begin + i] = parent < 0 ? 0 : depths_[r.begin + parent] + 1;
      }
      if (r.nodes == 0 || group_ == 0) continue;
      most_nodes_ = std::max(most_nodes_, r.nodes);
      const int64_t parts = (r.nodes + unit_nodes - 1) / unit_nodes, share = (r.nodes + parts - 1) / parts;
      packed_ |= share * group_ > kFew;
      work += (r.prefix + 16) * (r.nodes * group_ + 8);
      all_splits += r.splits;
      r.unit_nodes = share;
    }
    // Threads are woken only for work that outlasts the waking.
    threads_ = work * a_.heads * (a_.head + a_.value_size) < (1 << 20) ? 1 : std::max(threads, 1);
    const int64_t wanted = (2 * threads_ + all_splits - 1) / std::max<int64_t>(all_splits, 1);
    const int64_t few_heads = std::clamp<int64_t>(a_.heads / std::max<int64_t>(wanted, 1), 1, kMaxHeads);
    for (int64_t b = 0; b < a_.requests; ++b) {
      const Request& r = requests_[b];
      if (group_ == 0) continue;
      const int64_t step = r.unit_nodes * group_ > kFew ? 1 : few_heads;
      for (int64_t h = 0; h < a_.heads; h += step)
        for (int64_t node = 0; node < r.nodes; node += r.unit_nodes) {
          const int64_t nodes = std::min(r.unit_nodes, r.nodes - node);
          const int64_t heads = std::min(step, a_.heads - h);
          most_rows_ = std::max(most_rows_, nodes * group_ > kFew ? nodes * group_ : heads * kFew);
          units_.push_back({b, h, heads, node, nodes});
        }
    }
  }

  int64_t parent_of(const Request& r, int64_t node) const {
    const int64_t parent = a_.parents[r.begin + node];
    return parent >= 0 && parent < node ? parent : -1;
  }

  void clear_unowned_rows() {
    int64_t row = 0;
    const auto clear_until = [&](int64_t end) {
      for (; row < end; ++row) {
        const int64_t n = a_.query_heads * a_.value_size * bytes_of(a_.query.dtype);
        std::memset(static_cast<char*>(a_.out) + row * n, 0, n);
        for (int64_t h = 0; a_.out_lse && h < a_.query_heads; ++h)
          a_.out_lse[row * a_.query_heads + h] = -kInf;
      }
    };
    for (const Request& r : requests_) {
      clear_until(r.begin);
      row = std::max(row, r.begin + r.nodes);
    }
    clear_until(a_.rows);
  }

  // --- Memory ---

  void reserve() {
    const int64_t rows = padded(most_rows_, std::max<int64_t>(k_.lanes, kFew));
    seen_size_ = rows * (value_pad_ + 2);
    wave_ = std::clamp<int64_t>(kPartials / (seen_size_ * 4), 2, kMaxSplits);
    const int64_t packed = packed_;
    struct Part {
      float* Scratch::* place;
      int64_t size;
    };
    const Part parts[] = {
        {&Scratch::queries, rows * head_pad_},
        {&Scratch::partials, wave_ * seen_size_},
        {&Scratch::total, seen_size_},
        {&Scratch::rows, packed * rows * value_pad_},
        {&Scratch::node_query, kFew * head_pad_},
        {&Scratch::node_seen, kFew * (value_pad_ + 2)},
        {&Scratch::key_rows, packed * kTile * head_pad_},
        {&Scratch::value_panels, packed * kTile * value_pad_},
        {&Scratch::scores, packed * kTile * k_.block},
    };
    int64_t all = kLine;
    for (const Part& part : parts) all += padded(part.size, kLine) * threads_;
    memory_.reset(new float[all]);
    float* at = memory_.get();
    while (reinterpret_cast<uintptr_t>(at) % (kLine * sizeof(float))) ++at;
    scratch_.resize(threads_);
    for (Scratch& scratch : scratch_) {
      for (const Part& part : parts) {
        scratch.*part.place = at;
        at += padded(part.size, kLine);
      }
      scratch.chain.resize(most_nodes_);
    }
  }

  Seen seen_at(float* memory, int64_t rows) const { return {memory, memory + rows, memory + 2 * rows}; }

  void forget(const Seen& seen, int64_t rows) const {
    std::fill_n(seen.top, rows, kNothing);
    std::fill_n(seen.sum, rows, 0.0f);
    std::fill_n(seen.out, rows * value_pad_, 0.0f);
  }

  // --- One unit ---

  void attend(Worker& worker, const Unit& unit) {
    const Request& r = requests_[unit.request];
    Scratch& own = scratch_[worker.slot()];
    const int64_t rows = unit.nodes * group_;
    const bool packed = rows > kFew;
    const int64_t width = packed ? padded(rows, k_.lanes) : unit.heads * kFew;
    const Seen total = seen_at(own.total, width);
    forget(total, width);
    const Bounds bounds = windows(unit, r);
    const int64_t first_split = bounds.lowest / (r.split_tiles * kTile);
    if (first_split < r.splits) pack_queries(unit, r, rows, width, own.queries);
    for (int64_t wave = first_split; wave < r.splits; wave += wave_) {
      const int64_t count = std::min(wave_, r.splits - wave);
      worker.blocks(count, [&](int64_t i, int slot) {
        const Seen seen = seen_at(own.partials + i * seen_size_, width);
        forget(seen, width);
        const int64_t from = std::max((wave + i) * r.split_tiles, bounds.lowest / kTile) * kTile;
        const int64_t to = std::min((wave + i + 1) * r.split_tiles * kTile, r.prefix);
        if (packed)
          see_packed(unit, r, from, to, bounds, width, own.queries, scratch_[slot], seen);
        else
          see_few(unit, r, from, to, bounds, rows, own.queries, seen);
      });
      for (int64_t i = 0; i < count; ++i) {
        const Seen part = seen_at(own.partials + i * seen_size_, width);
        if (packed)
          for_blocks(width, [&](int64_t at, int64_t n) {
            k_.merge_packed(part_of(total, at), part_of(part, at), n, a_.value_size);
          });
        else
          k_.merge_rows(total, part, width, a_.value_size);
      }
    }
    Seen seen = total;
    if (packed) {
      seen.out = own.rows;
      for_blocks(width, [&](int64_t at, int64_t n) {
        k_.unpack(total.out + at * value_pad_, std::min(n, rows - at), a_.value_size,
                  a_.value.scale_of(unit.head), own.rows + at * value_pad_);
      });
    }
    for (int64_t h = 0; h < unit.heads; ++h) {
      const Seen of_head = part_of(seen, h * kFew);
      if (!packed) multiply(of_head.out, rows * value_pad_, a_.value.scale_of(unit.head + h));
      for (int64_t i = 0; i < unit.nodes; ++i) finish_node(unit, r, unit.head + h, i, own, of_head);
    }
  }

  static void multiply(float* x, int64_t n, float factor) {
    for (int64_t i = 0; i < n; ++i) x[i] *= factor;
  }

  Seen part_of(const Seen& seen, int64_t row) const {
    return {seen.top + row, seen.sum + row, seen.out + row * value_pad_};
  }

  template <class Body>
  void for_blocks(int64_t width, Body&& body) const {
    for (int64_t at = 0; at < width; at += k_.block) body(at, std::min(k_.block, width - at));
  }

  // Lowest and highest of the positions from which on the nodes see the prefix.
  Bounds windows(const Unit& unit, const Request& r) const {
    int64_t lowest = r.prefix, highest = 0;
    for (int64_t i = 0; i < unit.nodes; ++i) {
      const int64_t first = first_seen(r, unit.first_node + i);
      lowest = std::min(lowest, first);
      highest = std::max(highest, first);
    }
    return {lowest, highest};
  }

  int64_t first_seen(const Request& r, int64_t node) const {
    if (a_.window == 0) return 0;
    return std::clamp<int64_t>(r.prefix + depths_[r.begin + node] - a_.window + 1, 0, r.prefix);
  }

  // For each of n rows the first position seen, counted from `at`; null where all see the whole tile.
  const float* first_of(const Unit& unit, const Request& r, const Bounds& bounds, int64_t at, int64_t row,
                        int64_t n, float* out) const {
    if (at >= bounds.highest) return nullptr;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t node = unit.first_node + std::min((row + i) / group_, unit.nodes - 1);
      out[i] = static_cast<float>(std::clamp<int64_t>(first_seen(r, node) - at, 0, kTile));
    }
    return out;
  }

  void pack_queries(const Unit& unit, const Request& r, int64_t rows, int64_t width, float* out) const {
    const void* list[kMaxBlock];
    const auto fill = [&](int64_t head, int64_t at, int64_t n) -> RowList {
      for (int64_t i = 0; i < n; ++i)
        list[i] = at + i < rows ? query_row(unit, r, head, (at + i) / group_, (at + i) % group_) : nullptr;
      return {list, a_.query.dtype, a_.head};
    };
    if (rows > kFew)
      for_blocks(width, [&](int64_t at, int64_t n) {
        k_.pack_columns(fill(unit.head, at, n), n, out + at * head_pad_);
      });
    else
      for (int64_t h = 0; h < unit.heads; ++h)
        k_.pack_rows(fill(unit.head + h, 0, kFew), kFew, head_pad_, out + h * kFew * head_pad_);
  }

  const void* query_row(const Unit& unit, const Request& r, int64_t head, int64_t node,
                        int64_t in_group) const {
    return a_.query.row(r.begin + unit.first_node + node, head * group_ + in_group);
  }

  // --- The prefix, positions [at, end), which start at a tile ---

  void see_few(const Unit& unit, const Request& r, int64_t at, int64_t end, const Bounds& bounds,
               int64_t rows, const float* queries, const Seen& seen) const {
    Places now, next;
    Scoring scoring[kMaxHeads];
    for (int64_t h = 0; h < unit.heads; ++h) scoring[h] = scoring_of(a_.key.scale_of(unit.head + h));
    float first[kFew];
    for (; at < end; at += kTile) {
      const bool last = at + kTile >= end;
      Keys keys;
      keys.first = first_of(unit, r, bounds, at, 0, kFew, first);
      find_prefix(unit.request, unit.head, at, end, bounds.lowest, now);
      if (by_slots_ && rows <= k_.lanes && now.seen == ~uint64_t{0} && !keys.first) {
        if (!last) find_prefix(unit.request, unit.head, at + kTile, end, bounds.lowest, next);
        attend_slots(unit, now, last ? now : next, scoring, queries, rows, seen);
        continue;
      }
      // The values are asked for while the keys are at work, the next head's keys while the values are.
      for (int64_t h = 0; h < unit.heads; ++h) {
        next.count = 0;
        if (h + 1 < unit.heads)
          find_prefix(unit.request, unit.head + h + 1, at, end, bounds.lowest, next);
        else if (!last)
          find_prefix(unit.request, unit.head, at + kTile, end, bounds.lowest, next);
        Ahead during_keys{now.values(), now.count, a_.value_size * bytes_of(a_.value.dtype)};
        Ahead during_values{next.keys(), next.count, a_.head * bytes_of(a_.key.dtype)};
        keys.count = now.count;
        keys.seen = now.seen;
        k_.attend_few({now.keys(), a_.key.dtype, a_.head}, {now.values(), a_.value.dtype, a_.value_size},
                      keys, scoring[h], queries + h * kFew * head_pad_, rows, part_of(seen, h * kFew),
                      during_keys, during_values);
        std::swap(now, next);
      }
    }
  }

  void attend_slots(const Unit& unit, Places& now, Places& next, const Scoring* scoring, const float* queries,
                    int64_t rows, const Seen& seen) const {
    Slots slots;
    std::copy_n(now.rows, 2 * kTile, slots.rows);
    std::copy_n(next.keys(), kTile, slots.rows + 2 * kTile);
    slots.dtype = a_.key.dtype;
    slots.heads = unit.heads;
    slots.key_size = a_.head;
    slots.value_size = a_.value_size;
    slots.key_step = a_.key.head_stride * bytes_of(a_.key.dtype);
    slots.value_step = a_.value.head_stride * bytes_of(a_.value.dtype);
    slots.scoring = scoring;
    k_.attend_slots(slots, queries, rows, seen);
  }

  void see_packed(const Unit& unit, const Request& r, int64_t at, int64_t end, const Bounds& bounds,
                  int64_t width, const float* queries, Scratch& mine, const Seen& seen) const {
    Places places[2];
    float first[kMaxBlock];
    const int64_t bytes = std::max(a_.head, a_.value_size) * bytes_of(a_.key.dtype);
    const int64_t blocks = (width + k_.block - 1) / k_.block, share = (2 * kTile + blocks - 1) / blocks;
    const Scoring scoring = scoring_of(a_.key.scale_of(unit.head));
    if (at < end) find_prefix(unit.request, unit.head, at, end, bounds.lowest, places[0]);
    for (int64_t turn = 0; at < end; at += kTile, ++turn) {
      Places &now = places[turn % 2], &next = places[(turn + 1) % 2];
      next.count = 0;
      if (at + kTile < end) find_prefix(unit.request, unit.head, at + kTile, end, bounds.lowest, next);
      k_.pack_rows({now.keys(), a_.key.dtype, a_.head}, padded(now.count, kParts), head_pad_, mine.key_rows);
      k_.pack_panels({now.values(), a_.value.dtype, a_.value_size}, now.count, mine.value_panels);
      int64_t asked = 0;
      for_blocks(width, [&](int64_t row, int64_t n) {
        const Tile tile{{now.count, now.seen, first_of(unit, r, bounds, at, row, n, first)},
                        mine.key_rows,
                        mine.value_panels,
                        head_pad_};
        Ahead ahead{next.rows + asked, next.count ? std::min(share, 2 * kTile - asked) : 0, bytes};
        asked += ahead.count;
        k_.attend(tile, scoring, queries + row * head_pad_, a_.head, n, part_of(seen, row), a_.value_size,
                  mine.scores, ahead);
      });
    }
  }

  Scoring scoring_of(float key_scale) const {
    if (a_.softcap > 0) return {a_.scale * key_scale / a_.softcap, a_.softcap * kLog2E};
    return {a_.scale * key_scale * kLog2E, 0};
  }

  // Places of the tile of positions [from, end), those before `lowest` left out.
  void find_prefix(int64_t request, int64_t head, int64_t from, int64_t end, int64_t lowest,
                   Places& places) const {
    const int64_t to = std::min(from + kTile, end);
    places.clear(to - from, zeros_.data());
    int64_t index = std::max(from, lowest) / a_.page_size, slot = std::max(from, lowest) % a_.page_size;
    for (int64_t position = std::max(from, lowest); position < to; ++index, slot = 0) {
      const int64_t run = std::min(a_.page_size - slot, to - position), page = page_at(request, index);
      if (page >= 0)
        for (int64_t i = 0; i < run; ++i) {
          places.keys()[position + i - from] = a_.key.row(page, slot + i, head);
          places.values()[position + i - from] = a_.value.row(page, slot + i, head);
          places.seen |= uint64_t{1} << (position + i - from);
        }
      position += run;
    }
  }

  // The page that an entry of the block table names, -1 where there is none.
  int64_t page_at(int64_t request, int64_t index) const {
    if (index >= a_.table_width) return -1;
    const int64_t page = a_.block_table[request * a_.table_width + index];
    return page >= 0 && page < a_.pages ? page : -1;
  }

  // --- The tree, and the end ---

  void finish_node(const Unit& unit, const Request& r, int64_t head, int64_t i, Scratch& own,
                   const Seen& seen) const {
    const int64_t node = unit.first_node + i, depth = depths_[r.begin + node];
    const int64_t from = a_.window ? std::max<int64_t>(depth - a_.window + 1, 0) : 0;
    for (int64_t v = node, d = depth; d >= from; v = parent_of(r, v), --d)
      own.chain[d] = static_cast<int32_t>(v);
    const bool fresh = a_.new_key.data != nullptr;
    const Scoring scoring = scoring_of(fresh ? 1.0f : a_.key.scale_of(head));
    const float value_scale = fresh ? 1.0f : a_.value.scale_of(head);
    for (int64_t g = 0; g < group_; g += kFew) {
      const int64_t count = std::min<int64_t>(kFew, group_ - g);
      const void* query[kFew] = {};
      for (int64_t m = 0; m < count; ++m) query[m] = query_row(unit, r, head, i, g + m);
      k_.pack_rows({query, a_.query.dtype, a_.head}, kFew, head_pad_, own.node_query);
      const Seen tree = seen_at(own.node_seen, kFew);
      forget(tree, kFew);
      for (int64_t at = from; at <= depth; at += kTile) {
        Places places;
        Ahead nothing;
        find_chain(unit.request, r, head, own.chain.data() + at, std::min<int64_t>(kTile, depth + 1 - at),
                   places);
        const RowList keys{places.keys(), fresh ? a_.new_key.dtype : a_.key.dtype, a_.head};
        const RowList values{places.values(), fresh ? a_.new_value.dtype : a_.value.dtype, a_.value_size};
        k_.attend_few(keys, values, {places.count, places.seen, nullptr}, scoring, own.node_query, count,
                      tree, nothing, nothing);
      }
      multiply(tree.out, count * value_pad_, value_scale);
      const Seen rows = part_of(seen, i * group_ + g);
      k_.merge_rows(rows, tree, count, a_.value_size);
      for (int64_t m = 0; m < count; ++m) finish_row(r.begin + node, head * group_ + g + m, part_of(rows, m));
    }
  }

  // Places of the nodes of a path.
  void find_chain(int64_t request, const Request& r, int64_t head, const int32_t* chain, int64_t count,
                  Places& places) const {
    places.clear(count, zeros_.data());
    for (int64_t i = 0; i < count; ++i) {
      if (a_.new_key.data) {
        places.keys()[i] = a_.new_key.row(r.begin + chain[i], head);
        places.values()[i] = a_.new_value.row(r.begin + chain[i], head);
      } else {
        const int64_t position = r.prefix + chain[i], page = page_at(request, position / a_.page_size);
        if (page < 0) continue;
        places.keys()[i] = a_.key.row(page, position % a_.page_size, head);
        places.values()[i] = a_.value.row(page, position % a_.page_size, head);
      }
      places.seen |= uint64_t{1} << i;
    }
  }

  void finish_row(int64_t row, int64_t query_head, const Seen& seen) const {
    if (a_.sinks) {
      float top = a_.sinks[query_head] * kLog2E, sum = 1;
      k_.merge_rows(seen, {&top, &sum, nullptr}, 1, a_.value_size);
    }
    const float sum = *seen.sum;
    const int64_t at = row * a_.query_heads + query_head;
    char* out = static_cast<char*>(a_.out) + at * a_.value_size * bytes_of(a_.query.dtype);
    k_.write(seen.out, sum == 0 ? 0.0f : 1 / sum, a_.value_size, a_.query.dtype, out);
    if (a_.out_lse)
      a_.out_lse[at] = sum == 0 ? -kInf : static_cast<float>(*seen.top * std::log(2.0) + std::log(sum));
  }

  static constexpr int64_t kMaxBlock = 64;

  const AttentionArgs& a_;
  const AttentionKernels& k_;
  const int64_t group_, head_pad_, value_pad_;
  const bool by_slots_;
  const std::vector<unsigned char> zeros_;
  int threads_ = 1;
  bool packed_ = false;
  std::vector<Request> requests_;
  std::vector<int32_t> depths_;
  std::vector<Unit> units_;
  int64_t most_rows_ = 0, most_nodes_ = 0, seen_size_ = 0, wave_ = 1;
  std::unique_ptr<float[]> memory_;
  std::vector<Scratch> scratch_;
};

}  // namespace

void tree_attention(const AttentionArgs& args, int threads) { Attention(args, threads).run(); }

}  // namespace specdec
