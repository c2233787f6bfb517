#include "tessera/core/events.h"

namespace tessera::core {
namespace {

template <size_t I = 0>
std::optional<Event> decode_as(std::string_view name, std::string_view body) {
  if constexpr (I == std::variant_size_v<Event>) {
    return std::nullopt;
  } else {
    using T = std::variant_alternative_t<I, Event>;
    if (name != T::kName) return decode_as<I + 1>(name, body);
    T value;
    if (!decode(body, &value)) return std::nullopt;
    return Event(std::move(value));
  }
}

template <size_t I = 0>
bool sealed_name(std::string_view name) {
  if constexpr (I == std::variant_size_v<Event>) {
    return false;
  } else {
    using T = std::variant_alternative_t<I, Event>;
    if constexpr (SealedEvent<T>) {
      if (name == T::kName) return true;
    }
    return sealed_name<I + 1>(name);
  }
}

}  // namespace

std::string event_name(const Event& event) {
  return std::visit([](const auto& e) { return std::string(std::decay_t<decltype(e)>::kName); }, event);
}
std::string event_body(const Event& event) {
  return std::visit([](const auto& e) { return encode(e); }, event);
}
std::string event_json(const Event& event) {
  return std::visit([](const auto& e) { return to_json(e); }, event);
}
std::optional<uint64_t> seal_id(const Event& event) {
  return std::visit(
      [](const auto& e) -> std::optional<uint64_t> {
        if constexpr (SealedEvent<std::decay_t<decltype(e)>>) {
          return e.seal_id();
        } else {
          return std::nullopt;
        }
      },
      event);
}
bool is_sealed_kind(std::string_view name) { return sealed_name<>(name); }
std::optional<Event> decode_event(std::string_view name, std::string_view body) {
  return decode_as(name, body);
}

}  // namespace tessera::core
