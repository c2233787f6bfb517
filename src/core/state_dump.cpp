#include "tessera/core/invariants.h"

#include <fmt/format.h>

#include "tessera/base/archive.h"

namespace tessera::core {
namespace {

// A struct of the state, to be taken apart here rather than by its fields().
template <class T>
constexpr bool kOfState =
    std::is_same_v<T, PlannedShard> || std::is_same_v<T, MergeShard> || std::is_same_v<T, Merge> ||
    std::is_same_v<T, PastMerge> || std::is_same_v<T, StageRecord> || std::is_same_v<T, OpenMicrobatch> ||
    std::is_same_v<T, MinerRecord> || std::is_same_v<T, MinerTable<MinerRecord>> || std::is_same_v<T, Restage> || std::is_same_v<T, OrchestratorState>;

// Every struct is taken apart by a structured binding, which no longer compiles when a field is
// added: none can be forgotten here.
class Dump {
 public:
  std::string take() { return std::move(text_); }

  template <class T>
  void value(const T& v) {
    if constexpr (std::is_enum_v<T>) {
      text_ += fmt::format("{}", static_cast<int>(v));
    } else if constexpr (std::is_same_v<T, std::string>) {
      text_ += to_hex(v);
    } else if constexpr (std::is_arithmetic_v<T>) {
      text_ += fmt::format("{}", v);
    } else if constexpr (HasFields<T> && !kOfState<T>) {
      text_ += to_hex(encode(v));
    } else {
      composite(v);
    }
  }

 private:
  template <class Tag>
  void composite(const Bytes32<Tag>& v) {
    text_ += v.hex();
  }
  template <class T>
  void composite(const std::optional<T>& v) {
    if (!v) {
      text_ += "none";
    } else {
      value(*v);
    }
  }
  template <class A, class B>
  void composite(const std::pair<A, B>& v) {
    value(v.first);
    text_ += ": ";
    value(v.second);
  }
  template <class C>
  requires requires(const C& c) { c.begin(); }
  void composite(const C& items) {
    text_ += fmt::format("[{}]", items.size());
    for (const auto& item : items) {
      text_ += "\n  - ";
      value(item);
    }
  }
  void composite(const MinerTable<MinerRecord>& table) {
    text_ += fmt::format("next {}", table.next());
    for (const MinerRecord& record : table) value(record);
  }
  template <class... F>
  void fields(const F&... f) {
    int number = 0;
    ((text_ += fmt::format("\n {}= ", number++), value(f)), ...);
  }

  void composite(const PlannedShard& v) {
    const auto& [a, b, c, d] = v;
    fields(a, b, c, d);
  }
  void composite(const MergeShard& v) {
    const auto& [a, b, c, d, e, f, g, h, i, j, k, l, m] = v;
    fields(a, b, c, d, e, f, g, h, i, j, k, l, m);
  }
  void composite(const Merge& v) {
    const auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o] = v;
    fields(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o);
  }
  void composite(const PastMerge& v) {
    const auto& [a, b, c, d, e, f, g, h, i, j, k] = v;
    fields(a, b, c, d, e, f, g, h, i, j, k);
  }
  void composite(const StageRecord& v) {
    const auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, w, x, y, z, aa, bb] = v;
    fields(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, w, x, y, z, aa, bb);
  }
  void composite(const Restage& v) {
    const auto& [a, b, c] = v;
    fields(a, b, c);
  }
  void composite(const Lease& v) { text_ += to_hex(encode(v)); }
  void composite(const OpenMicrobatch& v) {
    const auto& [a, b, c, d, e, f, g, h, i, j] = v;
    fields(a, b, c, d, e, f, g, h, i, j);
  }
  void composite(const MinerRecord& v) {
    const auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, w, x, y, z, aa, bb, cc, dd, ee, ff, gg, hh, ii, jj, kk, ll, mm] = v;
    fields(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, w, x, y, z, aa, bb, cc, dd, ee, ff, gg, hh, ii, jj, kk, ll, mm);
  }
  void composite(const OrchestratorState& v) {
    const auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, w, x, y, z, aa, bb, cc, dd, ee, ff, gg, hh, ii, jj, kk, ll, mm, nn, oo] = v;
    fields(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, w, x, y, z, aa, bb, cc, dd, ee, ff, gg, hh, ii, jj, kk, ll, mm, nn, oo);
  }

  std::string text_;
};

}  // namespace

std::string dump(const OrchestratorState& state) {
  Dump out;
  out.value(state);
  return out.take();
}

}  // namespace tessera::core
