// SPDX-License-Identifier: Apache-2.0
// Texts of many requests, and what followed wherever the last tokens of a text were written before.
//
// Every position of a text is in a chain for each key length g: the positions at which the same g tokens end,
// or others with the same hash, the most recent first. A search walks the chains of a text's last tokens from
// the longest key to the shortest, over a bounded number of positions, so that no text can make it slow.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace specdec {

inline constexpr int kKeys = 3;
inline constexpr std::array<int64_t, kKeys> kKeyLengths = {2, 5, 12};
inline constexpr int64_t kMaxMatch = 64;  // longer matches count as this long

using Position = uint32_t;
inline constexpr Position kNowhere = UINT32_MAX;

// The positions of texts that grow and go, in blocks.
class TextBlocks {
 public:
  static constexpr Position kBlock = 64;
  static constexpr int64_t kSlab = 64;  // blocks allocated together

  struct Block {
    uint32_t before, after;  // blocks of the same text
    uint32_t used;           // positions
    uint32_t space;          // of the text
    int32_t tokens[kBlock];
    Position older[kKeys][kBlock], newer[kKeys][kBlock];
  };

  uint32_t take(uint32_t space);
  void give_back(uint32_t block) { free_.push_back(block); }
  int64_t used() const { return taken_ - static_cast<int64_t>(free_.size()); }
  int64_t bytes() const;

  Block& block(uint32_t index) { return slabs_[index / kSlab][index % kSlab]; }
  const Block& block(uint32_t index) const { return slabs_[index / kSlab][index % kSlab]; }
  int32_t token(Position p) const { return block(p / kBlock).tokens[p % kBlock]; }
  Position& older(int key, Position p) { return block(p / kBlock).older[key][p % kBlock]; }
  Position& newer(int key, Position p) { return block(p / kBlock).newer[key][p % kBlock]; }
  Position older(int key, Position p) const { return block(p / kBlock).older[key][p % kBlock]; }
  // The neighbours of a position in its text; kNowhere beyond the ends.
  Position before(Position p) const;
  Position after(Position p) const;

 private:
  std::vector<std::unique_ptr<Block[]>> slabs_;
  std::vector<uint32_t> free_;
  int64_t taken_ = 0;
};

// The newest position of every chain of one key length. The table grows by one bucket at a time, so that no
// insertion has to wait for all others.
class Chains {
 public:
  explicit Chains(int key) : key_(key), heads_(1, kNowhere) {}

  void insert(TextBlocks& blocks, Position p);
  void remove(TextBlocks& blocks, Position p);
  Position newest(uint64_t hash) const { return heads_[bucket_of(hash)]; }
  int64_t bytes() const { return static_cast<int64_t>(heads_.capacity() * sizeof(Position)); }

 private:
  size_t bucket_of(uint64_t hash) const {
    const size_t bucket = hash & (2 * half_ - 1);
    return bucket < heads_.size() ? bucket : bucket - half_;
  }
  void split(TextBlocks& blocks);

  int key_;
  std::vector<Position> heads_;
  size_t half_ = 1, entries_ = 0;  // heads_.size() is in [half_, 2 * half_)
};

enum class TokenDType : int32_t { kUint16, kInt32, kUint32, kInt64 };

// A text that does not change, in the caller's memory. Negative tokens are borders, which no match and no
// continuation crosses.
class Corpus {
 public:
  Corpus(const void* tokens, TokenDType dtype, int64_t size);

  int64_t size() const { return size_; }
  int64_t bytes() const;  // without the caller's
  int64_t token(Position p) const;
  Position newest(int key, uint64_t hash) const { return heads_[key][hash & mask_]; }
  Position older(int key, Position p) const { return older_[key][p]; }

 private:
  template <class T>
  void build(const T* tokens);

  const void* tokens_;
  TokenDType dtype_;
  int64_t size_;
  uint64_t mask_ = 0;
  std::array<std::vector<Position>, kKeys> heads_, older_;
};

struct SuffixDraft {
  int64_t max_nodes, max_depth, candidates, min_match;
  const double* trust;  // [trust_count], as of ngram_tree
  int64_t trust_count;
  int64_t* out_tokens;     // [B, max_nodes], the root first, -1 beyond the end
  int32_t* out_parents;    // [B, max_nodes]
  int32_t* out_cu_nodes;   // [B + 1]
  uint8_t* out_proposals;  // [B, max_nodes], all 0: Proposal.POINT
  float* out_scores;       // [B, max_nodes], log-probabilities
};

// One writer at a time, or any number of readers. A writer waits only for readers that came before it.
class FairMutex {
 public:
  class Writing {
   public:
    explicit Writing(FairMutex& mutex) : gate_(mutex.gate_), lock_(mutex.shared_) {}

   private:
    std::unique_lock<std::mutex> gate_;
    std::unique_lock<std::shared_mutex> lock_;
  };
  std::shared_lock<std::shared_mutex> reading() {
    const std::lock_guard gate(gate_);
    return std::shared_lock(shared_);
  }

 private:
  std::mutex gate_;
  std::shared_mutex shared_;
};

// Any thread may call any function. A function that throws has changed nothing.
class SuffixIndex {
 public:
  explicit SuffixIndex(int64_t max_bytes);

  // `name` is the namespace that the request writes to, `reads` those that it sees.
  void add(int64_t request, const std::string& name, const std::vector<std::string>& reads);
  // tokens [count, width], of which the first sizes[i] of row i belong to a request.
  void extend(const int64_t* requests, int64_t count, const int64_t* tokens, int64_t width,
              const int64_t* sizes);
  void finish(int64_t request);
  void remove(int64_t request);
  int64_t load(const std::string& name, const void* tokens, TokenDType dtype, int64_t size);
  void unload(int64_t corpus);
  void draft(const int64_t* requests, int64_t count, const SuffixDraft& args, int threads) const;

  int64_t size() const;  // texts
  bool contains(int64_t request) const;

  struct Listed {
    int64_t request;
    std::string name;
    int64_t size;
    bool running;
  };
  std::vector<Listed> list() const;  // finished ones first, the oldest first
  void read(int64_t request, int32_t* out) const;
  int64_t bytes() const;

 private:
  struct Space {
    uint32_t id = 0;
    int64_t texts = 0;
    std::map<int64_t, Corpus> corpora;
  };
  struct Text {
    std::string name;
    std::vector<std::string> reads;
    uint32_t space = 0;
    uint32_t first = kNowhere, last = kNowhere;  // blocks
    int64_t size = 0;
    bool running = true;
  };
  class Search;

  const Text& known(int64_t request) const;
  Text& known(int64_t request);
  Space& space(const std::string& name);
  void drop_if_empty(const std::string& name);
  void make_room(int64_t blocks);
  void append(Text& text, int32_t token);
  void erase(int64_t request);

  mutable FairMutex mutex_;
  int64_t max_blocks_;
  TextBlocks blocks_;
  std::array<Chains, kKeys> chains_{Chains(0), Chains(1), Chains(2)};
  std::unordered_map<std::string, Space> spaces_;
  std::unordered_map<int64_t, Text> texts_;
  std::unordered_map<int64_t, std::string> corpora_;  // their namespaces
  std::deque<int64_t> finished_;                      // the oldest first
  uint32_t next_space_ = 1;
  int64_t next_corpus_ = 0;
};

}  // namespace specdec
