// SPDX-License-Identifier: Apache-2.0
#include "suffix_index.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <queue>
#include <stdexcept>
#include <utility>

#include "team.h"

namespace specdec {
namespace {

constexpr uint64_t kBase = 0x9E3779B97F4A7C15ull;  // odd, so it has an inverse

constexpr uint64_t power(uint64_t x, int64_t n) {
  uint64_t product = 1;
  for (int64_t i = 0; i < n; ++i) product *= x;
  return product;
}

constexpr uint64_t inverse(uint64_t x) {
  uint64_t y = x;  // right in three bits; every step doubles them
  for (int i = 0; i < 5; ++i) y *= 2 - x * y;
  return y;
}
static_assert(kBase * inverse(kBase) == 1);

// `sum`: of (token + 1) * kBase^j over the g tokens of a key, j = g for the last. 63 bits; corpora have the
// hashes of space 0.
uint64_t mixed(uint64_t sum, uint32_t space) {
  sum = (sum ^ (sum >> 29) ^ (uint64_t{space} << 32)) * 0xBF58476D1CE4E5B9ull;
  return (sum ^ (sum >> 32)) >> 1;
}

// Of the g tokens that end at p; false if the text has fewer.
bool sum_at(const TextBlocks& blocks, Position p, int64_t g, uint64_t& sum) {
  constexpr uint64_t step = inverse(kBase);
  uint64_t factor = power(kBase, g);
  sum = 0;
  for (int64_t i = 0; i < g; ++i, p = blocks.before(p), factor *= step) {
    if (p == kNowhere) return false;
    sum += (static_cast<uint64_t>(blocks.token(p)) + 1) * factor;
  }
  return true;
}

bool hash_at(const TextBlocks& blocks, Position p, int64_t g, uint64_t& hash) {
  uint64_t sum = 0;
  if (!sum_at(blocks, p, g, sum)) return false;
  hash = mixed(sum, blocks.block(p / TextBlocks::kBlock).space);
  return true;
}

int64_t blocks_for(int64_t tokens) { return (tokens + TextBlocks::kBlock - 1) / TextBlocks::kBlock; }

}  // namespace

// ---- Texts that grow ----

uint32_t TextBlocks::take(uint32_t space) {
  if (free_.empty()) {
    if (taken_ == static_cast<int64_t>(slabs_.size()) * kSlab)
      slabs_.push_back(std::make_unique_for_overwrite<Block[]>(kSlab));
    free_.push_back(static_cast<uint32_t>(taken_++));
  }
  const uint32_t index = free_.back();
  free_.pop_back();
  Block& taken = block(index);
  taken.before = taken.after = kNowhere;
  taken.used = 0;
  taken.space = space;
  return index;
}

int64_t TextBlocks::bytes() const {
  return static_cast<int64_t>(slabs_.size()) * kSlab * static_cast<int64_t>(sizeof(Block));
}

Position TextBlocks::before(Position p) const {
  if (p % kBlock) return p - 1;
  const uint32_t other = block(p / kBlock).before;
  return other == kNowhere ? kNowhere : other * kBlock + kBlock - 1;
}

Position TextBlocks::after(Position p) const {
  const Block& own = block(p / kBlock);
  if (p % kBlock + 1 < own.used) return p + 1;
  return own.after == kNowhere ? kNowhere : own.after * kBlock;
}

void Chains::insert(TextBlocks& blocks, Position p) {
  uint64_t hash = 0;
  if (!hash_at(blocks, p, kKeyLengths[key_], hash)) return;
  if (++entries_ > heads_.size()) split(blocks);
  Position& head = heads_[bucket_of(hash)];
  blocks.older(key_, p) = head;
  blocks.newer(key_, p) = kNowhere;
  if (head != kNowhere) blocks.newer(key_, head) = p;
  head = p;
}

void Chains::remove(TextBlocks& blocks, Position p) {
  uint64_t hash = 0;
  if (!hash_at(blocks, p, kKeyLengths[key_], hash)) return;
  --entries_;
  const Position older = blocks.older(key_, p), newer = blocks.newer(key_, p);
  if (newer == kNowhere)
    heads_[bucket_of(hash)] = older;
  else
    blocks.older(key_, newer) = older;
  if (older != kNowhere) blocks.newer(key_, older) = newer;
}

// One bucket becomes two, in which the order stays.
void Chains::split(TextBlocks& blocks) {
  const size_t low = heads_.size() - half_, high = heads_.size();
  if (heads_.size() == heads_.capacity()) heads_.reserve(heads_.size() + heads_.size() / 4 + 16);
  Position p = heads_[low];
  heads_[low] = kNowhere;
  heads_.push_back(kNowhere);
  if (heads_.size() == 2 * half_) half_ *= 2;
  Position last[2] = {kNowhere, kNowhere};
  while (p != kNowhere) {
    const Position next = blocks.older(key_, p);
    uint64_t hash = 0;
    hash_at(blocks, p, kKeyLengths[key_], hash);
    const size_t bucket = bucket_of(hash);
    Position& before = last[bucket == high];
    blocks.newer(key_, p) = before;
    blocks.older(key_, p) = kNowhere;
    (before == kNowhere ? heads_[bucket] : blocks.older(key_, before)) = p;
    before = p;
    p = next;
  }
}

// ---- Texts that do not change ----

Corpus::Corpus(const void* tokens, TokenDType dtype, int64_t size)
    : tokens_(tokens), dtype_(dtype), size_(size) {
  switch (dtype) {
    case TokenDType::kUint16:
      build(static_cast<const uint16_t*>(tokens));
      break;
    case TokenDType::kInt32:
      build(static_cast<const int32_t*>(tokens));
      break;
    case TokenDType::kUint32:
      build(static_cast<const uint32_t*>(tokens));
      break;
    case TokenDType::kInt64:
      build(static_cast<const int64_t*>(tokens));
      break;
  }
}

int64_t Corpus::token(Position p) const {
  switch (dtype_) {
    case TokenDType::kUint16:
      return static_cast<const uint16_t*>(tokens_)[p];
    case TokenDType::kInt32:
      return static_cast<const int32_t*>(tokens_)[p];
    case TokenDType::kUint32:
      return static_cast<const uint32_t*>(tokens_)[p];
    default:
      return static_cast<const int64_t*>(tokens_)[p];
  }
}

int64_t Corpus::bytes() const {
  return static_cast<int64_t>(kKeys * sizeof(Position) * (mask_ + 1 + static_cast<uint64_t>(size_)));
}

template <class T>
void Corpus::build(const T* tokens) {
  constexpr int64_t kAhead = 16;  // positions whose heads are on their way
  constexpr uint64_t kNoKey = UINT64_MAX;
  mask_ = std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(size_, 1))) - 1;
  std::array<uint64_t, kAhead> hashes;
  for (int key = 0; key < kKeys; ++key) {
    const int64_t g = kKeyLengths[key];
    const uint64_t first = power(kBase, g);
    std::vector<Position>&heads = heads_[key], &older = older_[key];
    heads.assign(mask_ + 1, kNowhere);
    older.assign(size_, kNowhere);
    uint64_t sum = 0;
    int64_t length = 0;  // of the run without borders, at most g
    for (int64_t i = 0; i < size_ + kAhead; ++i) {
      if (i >= kAhead) {
        const int64_t p = i - kAhead;
        if (const uint64_t hash = hashes[p % kAhead]; hash != kNoKey) {
          Position& head = heads[hash & mask_];
          older[p] = head;
          head = static_cast<Position>(p);
        }
      }
      if (i >= size_) continue;
      const auto token = static_cast<int64_t>(tokens[i]);
      uint64_t hash = kNoKey;
      if (token < 0) {
        length = 0;
        sum = 0;
      } else {
        sum *= inverse(kBase);
        if (length == g)
          sum -= static_cast<uint64_t>(tokens[i - g]) + 1;
        else
          ++length;
        sum += (static_cast<uint64_t>(token) + 1) * first;
        if (length == g) {
          hash = mixed(sum, 0);
          __builtin_prefetch(&heads[hash & mask_], 1);
        }
      }
      hashes[i % kAhead] = hash;
    }
  }
}

// ---- The search ----

class SuffixIndex::Search {
 public:
  Search(const SuffixIndex& index, const SuffixDraft& args, int64_t b) : index_(index), args_(args), b_(b) {
    for (int64_t n = 0; n < args.trust_count; ++n) {
      const double trust = std::min(args.trust[n], kMostTrust);
      odds_.push_back(trust / (1 - trust));
    }
    kept_.reserve(args.max_nodes);
  }

  void run(const Text& text) {
    Node root{-1, -1, 0, 1.0, 0, 0};
    if (text.size > 0) {
      own_ = &index_.blocks_.block(text.last);
      end_ = text.last * TextBlocks::kBlock + own_->used - 1;
      root.token = index_.blocks_.token(end_);
      for (Position p = end_; p != kNowhere && length_ < kMaxMatch; p = index_.blocks_.before(p))
        suffix_[length_++] = index_.blocks_.token(p);
      search(text);
      root.end = cursors_.size();
    }
    grow(root);
    write();
  }

 private:
  // A place whose next token continues what the text ends with.
  struct Cursor {
    const Corpus* corpus;            // null: in a text that grows
    const TextBlocks::Block* block;  // of such a text
    Position place;                  // in the corpus, or in the block
    Position start;                  // where it was found
    uint32_t n;                      // tokens that were the same there
  };
  struct Node {
    int64_t token;
    int32_t parent;  // among the kept
    int64_t depth;
    double chance;
    size_t begin, end;  // of its cursors, whose places those of its children take
  };

  // Moves a cursor on. Returns the token there, below 0 if there is none. At the end of the text itself a
  // continuation goes on with itself: a repetition repeats.
  int64_t step(Cursor& c) const {
    if (c.corpus) return ++c.place < c.corpus->size() ? c.corpus->token(c.place) : -1;
    if (++c.place == c.block->used) {
      Position next = c.block->after * TextBlocks::kBlock;
      if (c.block->after == kNowhere) {
        if (c.block != own_) return -1;
        next = index_.blocks_.after(c.start);
      }
      c.block = &index_.blocks_.block(next / TextBlocks::kBlock);
      c.place = next % TextBlocks::kBlock;
    }
    return c.block->tokens[c.place];
  }

  // Longer keys first; shorter ones only while little was found.
  void search(const Text& text) {
    for (int key = kKeys - 1; key >= 0; --key) {
      if (length_ < kKeyLengths[key]) continue;
      if (static_cast<int64_t>(cursors_.size()) >= kEnough || kKeyLengths[key] < args_.min_match) break;
      uint64_t sum = 0;
      sum_at(index_.blocks_, end_, kKeyLengths[key], sum);
      for (const std::string& name : text.reads) {
        const auto space = index_.spaces_.find(name);
        if (space == index_.spaces_.end()) continue;
        Position p = index_.chains_[key].newest(mixed(sum, space->second.id));
        for (int64_t i = 0; i < args_.candidates && p != kNowhere; ++i, p = index_.blocks_.older(key, p)) {
          const uint32_t own = index_.blocks_.block(p / TextBlocks::kBlock).space;
          if (p != end_ && own == space->second.id) consider(nullptr, p, key);
        }
        for (const auto& [handle, corpus] : space->second.corpora) {
          p = corpus.newest(key, mixed(sum, 0));
          for (int64_t i = 0; i < args_.candidates && p != kNowhere; ++i, p = corpus.older(key, p))
            consider(&corpus, p, key);
        }
      }
    }
  }

  // Takes a place if exactly this key finds it: others of its chain only have the same hash, or a longer key
  // has found them.
  void consider(const Corpus* corpus, Position place, int key) {
    int64_t n = 0;
    for (Position p = place; p != kNowhere && n < length_; ++n) {
      if ((corpus ? corpus->token(p) : index_.blocks_.token(p)) != suffix_[n]) break;
      p = !corpus ? index_.blocks_.before(p) : p > 0 ? p - 1 : kNowhere;
    }
    if (n < kKeyLengths[key] || (key + 1 < kKeys && n >= kKeyLengths[key + 1])) return;
    Cursor found{corpus, nullptr, place, place, static_cast<uint32_t>(n)};
    if (!corpus) {
      found.block = &index_.blocks_.block(place / TextBlocks::kBlock);
      found.place = place % TextBlocks::kBlock;
    }
    cursors_.push_back(found);
  }

  // The likeliest nodes, a node's parent before it.
  void grow(const Node& root) {
    const auto worse = [&](size_t i, size_t j) {
      return open_[i].chance != open_[j].chance ? open_[i].chance < open_[j].chance : i > j;
    };
    std::priority_queue<size_t, std::vector<size_t>, decltype(worse)> queue(worse);
    open_.push_back(root);
    moves_.resize(cursors_.size());
    queue.push(0);
    while (!queue.empty() && static_cast<int64_t>(kept_.size()) < args_.max_nodes) {
      const size_t best = queue.top();
      queue.pop();
      const auto parent = static_cast<int32_t>(kept_.size());
      kept_.push_back({open_[best].token, open_[best].parent, open_[best].chance});
      if (open_[best].depth >= args_.max_depth) continue;
      const size_t first = open_.size();
      double total = extend(best, parent);
      total += static_cast<double>(open_.size() - first);  // the more ways to go on, the likelier a new one
      for (size_t child = first; child < open_.size(); ++child) {
        open_[child].chance *= kept_[parent].chance / total;
        queue.push(child);
      }
    }
  }

  // Opens the children of a node. Their cursors are its own, moved on by a token and sorted by child. Odds of
  // several matches add up: with one, a node has the chance `trust`. Most nodes have one child.
  double extend(size_t node, int32_t parent) {
    const Node from = open_[node];
    const size_t first = open_.size(), known = odds_.size();
    Cursor *const begin = cursors_.data() + from.begin, *end = begin;
    Move* move = moves_.data();
    size_t child = first;
    int64_t last = -1;  // the token of `child`
    double total = 0;
    for (Cursor* c = begin; c != cursors_.data() + from.end; ++c) {
      const int64_t token = step(*c);
      if (token < 0) continue;
      if (token != last) {
        for (child = first; child < open_.size() && open_[child].token != token;) ++child;
        if (child == open_.size()) open_.push_back({token, parent, from.depth + 1, 0, 0, 0});
        last = token;
      }
      const double odds = odds_[std::min<size_t>(c->n + from.depth, known) - 1];
      total += odds;
      *move++ = {child, odds};
      if (c != end) *end = *c;
      ++end;
    }
    size_t at = from.begin;
    if (open_.size() == first + 1) {
      open_[first].chance = total;
      open_[first].begin = at;
      open_[first].end = end - cursors_.data();
      return total;
    }
    for (const Move* m = moves_.data(); m != move; ++m) {
      open_[m->child].chance += m->odds;
      ++open_[m->child].end;
    }
    for (child = first; child < open_.size(); ++child) {
      open_[child].begin = at;
      at += std::exchange(open_[child].end, at);
    }
    unsorted_.assign(begin, end);
    for (size_t i = 0; i < unsorted_.size(); ++i) cursors_[open_[moves_[i].child].end++] = unsorted_[i];
    return total;
  }

  void write() const {
    const int64_t begin = b_ * args_.max_nodes, count = static_cast<int64_t>(kept_.size());
    args_.out_cu_nodes[b_ + 1] = static_cast<int32_t>(begin + args_.max_nodes);
    for (int64_t i = 0; i < args_.max_nodes; ++i) {
      args_.out_tokens[begin + i] = i < count ? kept_[i].token : -1;
      args_.out_parents[begin + i] = i < count ? kept_[i].parent : 0;
      args_.out_proposals[begin + i] = 0;
      args_.out_scores[begin + i] =
          i < count ? static_cast<float>(std::log(kept_[i].chance)) : -std::numeric_limits<float>::infinity();
    }
  }

  static constexpr int64_t kEnough = 8;
  static constexpr double kMostTrust = 0.999;

  struct Move {
    size_t child;
    double odds;
  };
  struct Kept {
    int64_t token;
    int32_t parent;
    double chance;
  };

  const SuffixIndex& index_;
  const SuffixDraft& args_;
  int64_t b_;
  Position end_ = kNowhere;
  const TextBlocks::Block* own_ = nullptr;  // the last block of the text itself
  int64_t suffix_[kMaxMatch], length_ = 0;  // the last tokens, the last one first
  std::vector<double> odds_;                // by tokens of a match
  std::vector<Cursor> cursors_;             // of all nodes that are not extended yet
  std::vector<Move> moves_;                 // of the cursors of the node that is extended
  std::vector<Cursor> unsorted_;
  std::vector<Node> open_;
  std::vector<Kept> kept_;
};

// ---- The index ----

const SuffixIndex::Text& SuffixIndex::known(int64_t request) const {
  const auto found = texts_.find(request);
  if (found == texts_.end())
    throw std::invalid_argument("request must be in the index, got " + std::to_string(request));
  return found->second;
}

SuffixIndex::Text& SuffixIndex::known(int64_t request) {
  return const_cast<Text&>(std::as_const(*this).known(request));
}

SuffixIndex::Space& SuffixIndex::space(const std::string& name) {
  Space& space = spaces_[name];
  if (space.id == 0) space.id = next_space_++;
  return space;
}

void SuffixIndex::drop_if_empty(const std::string& name) {
  const auto found = spaces_.find(name);
  if (found->second.texts == 0 && found->second.corpora.empty()) spaces_.erase(found);
}

SuffixIndex::SuffixIndex(int64_t max_bytes) {
  constexpr int64_t heads = kKeys * static_cast<int64_t>(TextBlocks::kBlock * sizeof(Position));
  constexpr int64_t block = static_cast<int64_t>(sizeof(TextBlocks::Block)) + heads + heads / 4;
  const int64_t slabs = max_bytes / (block * TextBlocks::kSlab);
  max_blocks_ = std::min<int64_t>(slabs * TextBlocks::kSlab, kNowhere / TextBlocks::kBlock);
}

void SuffixIndex::add(int64_t request, const std::string& name, const std::vector<std::string>& reads) {
  const FairMutex::Writing lock(mutex_);
  if (texts_.contains(request))
    throw std::invalid_argument("request must not be in the index, got " + std::to_string(request));
  Space& own = space(name);
  Text text;
  text.name = name;
  text.reads = reads;
  text.space = own.id;
  ++own.texts;
  texts_.emplace(request, std::move(text));
}

void SuffixIndex::extend(const int64_t* requests, int64_t count, const int64_t* tokens, int64_t width,
                         const int64_t* sizes) {
  const FairMutex::Writing lock(mutex_);
  int64_t blocks = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Text& text = known(requests[i]);
    if (!text.running)
      throw std::invalid_argument("request must be running, got " + std::to_string(requests[i]));
    if (std::find(requests, requests + i, requests[i]) != requests + i)
      throw std::invalid_argument("request must be distinct, got " + std::to_string(requests[i]) + " twice");
    if (sizes[i] < 0 || sizes[i] > width)
      throw std::invalid_argument("num_tokens must be in [0, W] = [0, " + std::to_string(width) + "], got " +
                                  std::to_string(sizes[i]));
    for (int64_t j = 0; j < sizes[i]; ++j)
      if (const int64_t token = tokens[i * width + j]; token < 0 || token > INT32_MAX)
        throw std::invalid_argument("tokens must be in [0, 2**31), got " + std::to_string(token));
    blocks += blocks_for(text.size + sizes[i]) - blocks_for(text.size);
  }
  make_room(blocks);
  for (int64_t i = 0; i < count; ++i) {
    Text& text = known(requests[i]);
    for (int64_t j = 0; j < sizes[i]; ++j) append(text, static_cast<int32_t>(tokens[i * width + j]));
  }
}

// Evicts finished texts, the oldest first, until so many blocks can be taken.
void SuffixIndex::make_room(int64_t blocks) {
  int64_t left = blocks_.used() + blocks - max_blocks_;
  int64_t evicted = 0;
  while (left > 0 && evicted < static_cast<int64_t>(finished_.size()))
    left -= blocks_for(known(finished_[evicted++]).size);
  if (left > 0)
    throw std::invalid_argument("tokens must fit into max_bytes beside running texts, got " +
                                std::to_string(left) + " blocks of 64 too many");
  for (; evicted > 0; --evicted) erase(finished_.front());
}

void SuffixIndex::append(Text& text, int32_t token) {
  if (text.size % TextBlocks::kBlock == 0) {
    const uint32_t block = blocks_.take(text.space);
    blocks_.block(block).before = text.last;
    (text.last == kNowhere ? text.first : blocks_.block(text.last).after) = block;
    text.last = block;
  }
  TextBlocks::Block& block = blocks_.block(text.last);
  const Position p = text.last * TextBlocks::kBlock + block.used;
  block.tokens[block.used++] = token;
  ++text.size;
  for (Chains& chains : chains_) chains.insert(blocks_, p);
}

void SuffixIndex::finish(int64_t request) {
  const FairMutex::Writing lock(mutex_);
  Text& text = known(request);
  if (!text.running) throw std::invalid_argument("request must be running, got " + std::to_string(request));
  text.running = false;
  finished_.push_back(request);
}

void SuffixIndex::remove(int64_t request) {
  const FairMutex::Writing lock(mutex_);
  known(request);
  erase(request);
}

void SuffixIndex::erase(int64_t request) {
  const auto found = texts_.find(request);
  Text& text = found->second;
  for (uint32_t block = text.last; block != kNowhere; block = blocks_.block(block).before)
    for (uint32_t i = blocks_.block(block).used; i-- > 0;)
      for (Chains& chains : chains_) chains.remove(blocks_, block * TextBlocks::kBlock + i);
  for (uint32_t block = text.first; block != kNowhere;) {
    const uint32_t next = blocks_.block(block).after;
    blocks_.give_back(block);
    block = next;
  }
  if (!text.running) finished_.erase(std::find(finished_.begin(), finished_.end(), request));
  const std::string name = text.name;
  texts_.erase(found);
  --spaces_.at(name).texts;
  drop_if_empty(name);
}

int64_t SuffixIndex::load(const std::string& name, const void* tokens, TokenDType dtype, int64_t size) {
  Corpus corpus(tokens, dtype, size);
  const FairMutex::Writing lock(mutex_);
  space(name).corpora.emplace(next_corpus_, std::move(corpus));
  corpora_.emplace(next_corpus_, name);
  return next_corpus_++;
}

void SuffixIndex::unload(int64_t corpus) {
  const FairMutex::Writing lock(mutex_);
  const auto found = corpora_.find(corpus);
  if (found == corpora_.end())
    throw std::invalid_argument("corpus must be in the index, got " + std::to_string(corpus));
  const std::string name = found->second;
  spaces_.at(name).corpora.erase(corpus);
  corpora_.erase(found);
  drop_if_empty(name);
}

void SuffixIndex::draft(const int64_t* requests, int64_t count, const SuffixDraft& args, int threads) const {
  const auto lock = mutex_.reading();
  std::vector<const Text*> texts;
  for (int64_t b = 0; b < count; ++b) texts.push_back(&known(requests[b]));
  args.out_cu_nodes[0] = 0;
  Team team(count > 1 ? threads : 1);
  team.items(count, 1, [&](Worker&, int64_t b) { Search(*this, args, b).run(*texts[b]); });
}

int64_t SuffixIndex::size() const {
  const auto lock = mutex_.reading();
  return static_cast<int64_t>(texts_.size());
}

bool SuffixIndex::contains(int64_t request) const {
  const auto lock = mutex_.reading();
  return texts_.contains(request);
}

std::vector<SuffixIndex::Listed> SuffixIndex::list() const {
  const auto lock = mutex_.reading();
  std::vector<Listed> listed;
  for (int64_t request : finished_)
    listed.push_back({request, known(request).name, known(request).size, false});
  for (const auto& [request, text] : texts_)
    if (text.running) listed.push_back({request, text.name, text.size, true});
  return listed;
}

void SuffixIndex::read(int64_t request, int32_t* out) const {
  const auto lock = mutex_.reading();
  for (uint32_t block = known(request).first; block != kNowhere; block = blocks_.block(block).after) {
    const TextBlocks::Block& own = blocks_.block(block);
    out = std::copy(own.tokens, own.tokens + own.used, out);
  }
}

int64_t SuffixIndex::bytes() const {
  const auto lock = mutex_.reading();
  int64_t bytes = blocks_.bytes();
  for (const Chains& chains : chains_) bytes += chains.bytes();
  for (const auto& [name, space] : spaces_)
    for (const auto& [handle, corpus] : space.corpora) bytes += corpus.bytes();
  return bytes;
}

}  // namespace specdec
