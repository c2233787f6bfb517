#include "data/piece_trie.h"

#include <algorithm>

#include "tessera/base/status.h"

namespace tessera::data {

// Breadth first over ranges of the sorted keys: node number and range go into a queue together.
PieceTrie::PieceTrie(std::vector<std::pair<std::string_view, uint32_t>> entries) {
  std::sort(entries.begin(), entries.end());
  struct Range {
    size_t first, last, depth;
  };
  std::vector<Range> ranges = {{0, entries.size(), 0}};
  nodes_.resize(1);
  for (size_t node = 0; node < ranges.size(); ++node) {
    auto [first, last, depth] = ranges[node];
    if (first < last && entries[first].first.size() == depth) {
      TESSERA_CHECK(depth > 0);
      nodes_[node].value = entries[first].second;
      ++first;
    }
    nodes_[node].first_edge = static_cast<uint32_t>(edges_.size());
    while (first < last) {
      const char byte = entries[first].first[depth];
      size_t end = first;
      while (end < last && entries[end].first.size() > depth && entries[end].first[depth] == byte) {
        ++end;
      }
      TESSERA_CHECK(end > first);  // else a key is there twice
      edges_.push_back(static_cast<uint8_t>(byte));
      ranges.push_back({first, end, depth + 1});
      nodes_.emplace_back();
      first = end;
    }
    nodes_[node].edge_count = static_cast<uint32_t>(edges_.size()) - nodes_[node].first_edge;
  }
}

bool PieceTrie::step(char byte, Node* node) const {
  const NodeData& from = nodes_[*node];
  const auto begin = edges_.begin() + from.first_edge;
  const auto end = begin + from.edge_count;
  const auto edge = std::lower_bound(begin, end, static_cast<uint8_t>(byte));
  if (edge == end || *edge != static_cast<uint8_t>(byte)) return false;
  *node = static_cast<Node>(edge - edges_.begin()) + 1;
  return true;
}

size_t PieceTrie::longest_prefix(std::string_view text) const {
  size_t longest = 0;
  Node node = kRoot;
  for (size_t i = 0; i < text.size() && step(text[i], &node); ++i) {
    if (nodes_[node].value != kNoValue) longest = i + 1;
  }
  return longest;
}

}  // namespace tessera::data
