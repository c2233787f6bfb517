// Byte strings with a number each, found byte by byte. Immutable after construction, so safe to
// share.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

namespace tessera::data {

class PieceTrie {
 public:
  // A place in the trie.
  using Node = uint32_t;
  static constexpr Node kRoot = 0;

  PieceTrie() : PieceTrie(std::vector<std::pair<std::string_view, uint32_t>>{}) {}
  // Keys differ and are not empty.
  explicit PieceTrie(std::vector<std::pair<std::string_view, uint32_t>> entries);

  // Goes from `*node` along `byte`. False if no key goes on that way.
  bool step(char byte, Node* node) const;
  // The number of the key that ends at `node`.
  std::optional<uint32_t> value(Node node) const {
    const uint32_t stored = nodes_[node].value;
    return stored == kNoValue ? std::nullopt : std::optional(stored);
  }
  // Bytes of the longest key that `text` starts with; 0: none.
  size_t longest_prefix(std::string_view text) const;
  bool empty() const { return nodes_[kRoot].edge_count == 0; }

 private:
  static constexpr uint32_t kNoValue = UINT32_MAX;
  // The edges of a node lie side by side, sorted by their byte; edge i leads to node i + 1.
  struct NodeData {
    uint32_t first_edge = 0;
    uint32_t edge_count = 0;
    uint32_t value = kNoValue;
  };
  std::vector<NodeData> nodes_;
  std::vector<uint8_t> edges_;
};

}  // namespace tessera::data
