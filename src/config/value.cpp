#include "config/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <string_view>

namespace tessera::config {
namespace {

constexpr size_t kMaxQuotedBytes = 60;

// yaml-cpp marks what was quoted, or written as a block, with the tag "!".
bool is_quoted(const YAML::Node& node) { return node.Tag() == "!"; }

// A number must not be in quotes: "5" is a text.
StatusOr<std::string> plain_text(const YAML::Node& node, const std::string& type) {
  TESSERA_ASSIGN_OR_RETURN(std::string text, scalar_text(node, type));
  if (!is_quoted(node)) return text;
  return invalid_argument("expected {}, got the quoted text {}", type, describe(node));
}

bool all_digits(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

template <class T>
Status parse_whole(const std::string& text, const std::string& type, T* target) {
  if (text.size() > 1 && text[0] == '-' && all_digits(std::string_view(text).substr(1))) {
    return invalid_argument("expected {}, got the negative {}", type, text);
  }
  if (!all_digits(text)) return invalid_argument("expected {}, got '{}'", type, text);
  // YAML 1.1 reads 010 as eight, YAML 1.2 as ten.
  if (text.size() > 1 && text[0] == '0') {
    return invalid_argument("expected {} without leading zeros, got '{}'", type, text);
  }
  T value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc()) {
    return invalid_argument("{} is too large; the largest number here is {}", text,
                            std::numeric_limits<T>::max());
  }
  *target = value;
  return ok_status();
}

Status parse_real(const std::string& text, const std::string& type, double* target) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  if (result.ec == std::errc::result_out_of_range) {
    return invalid_argument("{} does not fit into a 64-bit floating-point number", text);
  }
  if (result.ec != std::errc() || result.ptr != end || !std::isfinite(value)) {
    return invalid_argument("expected {}, got '{}'", type, text);
  }
  *target = value;
  return ok_status();
}

struct Unit {
  std::string_view name;
  uint64_t bytes;
};
// Larger ones first and binary ones before decimal ones: write_value() takes the first that
// divides.
constexpr Unit kUnits[] = {{"TiB", uint64_t{1} << 40},
                           {"GiB", uint64_t{1} << 30},
                           {"MiB", uint64_t{1} << 20},
                           {"KiB", uint64_t{1} << 10},
                           {"TB", 1000000000000},
                           {"GB", 1000000000},
                           {"MB", 1000000},
                           {"KB", 1000}};

template <class T>
Status read_list(const YAML::Node& node, const std::string& type, std::vector<T>* target) {
  if (!node.IsSequence()) return invalid_argument("expected {}, got {}", type, describe(node));
  if (node.size() > kMaxListItems) {
    return invalid_argument("{} items are more than the {} that a list may have", node.size(),
                            kMaxListItems);
  }
  std::vector<T> values;
  for (const YAML::Node& item : node) {
    T value{};
    TESSERA_RETURN_IF_ERROR(
        annotate(read_value(item, &value), fmt::format("item {}", values.size() + 1)));
    values.push_back(std::move(value));
  }
  *target = std::move(values);
  return ok_status();
}

template <class T>
std::string write_list(const std::vector<T>& values) {
  std::string text;
  for (const T& value : values) text += (text.empty() ? "" : ", ") + write_value(&value);
  return "[" + text + "]";
}

bool is_host(std::string_view host) {
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  if (host.empty() || host.size() > 253) return false;
  return std::all_of(host.begin(), host.end(), [&](char c) {
    const bool common =
        (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.';
    return common || (bracketed ? c == ':' || c == '%' : c == '-' || c == '_');
  });
}

}  // namespace

std::string describe(const YAML::Node& node) {
  if (node.IsSequence()) return "a list";
  if (node.IsMap()) return "a section";
  if (!node.IsScalar()) return "nothing";
  std::string text = node.Scalar();
  if (text.size() > kMaxQuotedBytes) text = text.substr(0, kMaxQuotedBytes) + "...";
  return "'" + text + "'";
}

StatusOr<std::string> scalar_text(const YAML::Node& node, const std::string& type) {
  if (!node.IsScalar()) return invalid_argument("expected {}, got {}", type, describe(node));
  if (node.Tag() != "?" && node.Tag() != "!" && !node.Tag().empty()) {
    return invalid_argument("expected {} without a YAML tag, got the tag '{}'", type, node.Tag());
  }
  const std::string& text = node.Scalar();
  const bool has_control_character = std::any_of(
      text.begin(), text.end(), [](char c) { return (c >= 0 && c < ' ') || c == '\x7f'; });
  // In a path or an address they would be cut off or hidden further down.
  if (has_control_character) {
    return invalid_argument("expected {} on one line, without control characters", type);
  }
  return text;
}

std::string type_of(const bool*) { return "true or false"; }
Status read_value(const YAML::Node& node, bool* target) {
  TESSERA_ASSIGN_OR_RETURN(const std::string text, plain_text(node, type_of(target)));
  if (text != "true" && text != "false") {
    return invalid_argument("expected {}, got '{}'", type_of(target), text);
  }
  *target = text == "true";
  return ok_status();
}
std::string write_value(const bool* target) { return *target ? "true" : "false"; }

std::string type_of(const uint32_t*) { return "a whole number"; }
Status read_value(const YAML::Node& node, uint32_t* target) {
  TESSERA_ASSIGN_OR_RETURN(const std::string text, plain_text(node, type_of(target)));
  return parse_whole(text, type_of(target), target);
}
std::string write_value(const uint32_t* target) { return fmt::format("{}", *target); }

std::string type_of(const uint64_t*) { return "a whole number"; }
Status read_value(const YAML::Node& node, uint64_t* target) {
  TESSERA_ASSIGN_OR_RETURN(const std::string text, plain_text(node, type_of(target)));
  return parse_whole(text, type_of(target), target);
}
std::string write_value(const uint64_t* target) { return fmt::format("{}", *target); }

std::string type_of(const double*) { return "a number"; }
Status read_value(const YAML::Node& node, double* target) {
  TESSERA_ASSIGN_OR_RETURN(const std::string text, plain_text(node, type_of(target)));
  return parse_real(text, type_of(target), target);
}
// The shortest text that gives the same number again.
std::string write_value(const double* target) { return fmt::format("{}", *target); }

std::string type_of(const std::string*) { return "a text"; }
Status read_value(const YAML::Node& node, std::string* target) {
  if (node.IsNull())
    return invalid_argument("expected a text, got nothing; write \"\" for an empty one");
  TESSERA_ASSIGN_OR_RETURN(*target, scalar_text(node, type_of(target)));
  return ok_status();
}
std::string write_value(const std::string* target) {
  YAML::Emitter emitter;
  emitter << YAML::DoubleQuoted << *target;
  return emitter.c_str();
}

std::string type_of(const std::vector<uint32_t>*) { return "a list of whole numbers"; }
Status read_value(const YAML::Node& node, std::vector<uint32_t>* target) {
  return read_list(node, type_of(target), target);
}
std::string write_value(const std::vector<uint32_t>* target) { return write_list(*target); }

std::string type_of(const std::vector<double>*) { return "a list of numbers"; }
Status read_value(const YAML::Node& node, std::vector<double>* target) {
  if (!node.IsScalar()) return read_list(node, type_of(target), target);
  double value = 0;
  TESSERA_RETURN_IF_ERROR(read_value(node, &value));
  *target = {value};
  return ok_status();
}
std::string write_value(const std::vector<double>* target) { return write_list(*target); }

std::string type_of(const std::vector<std::string>*) { return "a list of texts"; }
Status read_value(const YAML::Node& node, std::vector<std::string>* target) {
  if (!node.IsScalar()) return read_list(node, type_of(target), target);
  TESSERA_ASSIGN_OR_RETURN(std::string text, scalar_text(node, type_of(target)));
  *target = {std::move(text)};
  return ok_status();
}
std::string write_value(const std::vector<std::string>* target) { return write_list(*target); }

std::string type_of(const NodeId*) { return "a public key of 64 hexadecimal digits"; }
Status read_value(const YAML::Node& node, NodeId* target) {
  TESSERA_ASSIGN_OR_RETURN(const std::string text, scalar_text(node, type_of(target)));
  const std::optional<std::string> bytes = from_hex(text);
  if (bytes && NodeId::from(*bytes, target)) return ok_status();
  return invalid_argument("expected {}, got {}", type_of(target), describe(node));
}
std::string write_value(const NodeId* target) { return '"' + target->hex() + '"'; }

std::string type_of(const std::vector<NodeId>*) { return "a list of public keys"; }
Status read_value(const YAML::Node& node, std::vector<NodeId>* target) {
  return read_list(node, type_of(target), target);
}
std::string write_value(const std::vector<NodeId>* target) { return write_list(*target); }

std::string type_of(const Device*) { return "auto, cpu, cuda or cuda:N"; }
Status read_value(const YAML::Node& node, Device* target) {
  TESSERA_ASSIGN_OR_RETURN(const std::string text, scalar_text(node, type_of(target)));
  if (text == "auto" || text == "cpu" || text == "cuda") {
    const auto kind = text == "auto"  ? Device::Kind::kAuto
                      : text == "cpu" ? Device::Kind::kCpu
                                      : Device::Kind::kCuda;
    *target = {kind, std::nullopt};
    return ok_status();
  }
  uint32_t index = 0;
  if (text.starts_with("cuda:") && parse_whole(text.substr(5), "", &index).ok() && index < 64) {
    *target = {Device::Kind::kCuda, index};
    return ok_status();
  }
  return invalid_argument("expected {}, got {}", type_of(target), describe(node));
}
std::string write_value(const Device* target) { return name_of(*target); }

std::string type_of(const Ratio&) { return "a ratio such as 128 or 128x"; }
Status read_value(const YAML::Node& node, const Ratio& ratio) {
  TESSERA_ASSIGN_OR_RETURN(std::string text, scalar_text(node, type_of(ratio)));
  const std::string number = text.ends_with('x') ? text.substr(0, text.size() - 1) : text;
  const Status status = parse_real(number, type_of(ratio), ratio.target);
  if (status.ok()) return status;
  return invalid_argument("expected {}, got {}", type_of(ratio), describe(node));
}
std::string write_value(const Ratio& ratio) { return write_value(ratio.target); }

std::string type_of(const ByteCount&) { return "a number of bytes such as 1073741824 or 1GiB"; }
Status read_value(const YAML::Node& node, const ByteCount& count) {
  TESSERA_ASSIGN_OR_RETURN(const std::string text, scalar_text(node, type_of(count)));
  uint64_t unit_bytes = 1;
  std::string number = text;
  for (const Unit& unit : kUnits) {
    if (!text.ends_with(unit.name)) continue;
    unit_bytes = unit.bytes;
    number = text.substr(0, text.size() - unit.name.size());
    while (number.ends_with(' ')) number.pop_back();
    break;
  }
  uint64_t value = 0;
  if (!all_digits(number)) {
    return invalid_argument("expected {}, got {}", type_of(count), describe(node));
  }
  TESSERA_RETURN_IF_ERROR(parse_whole(number, type_of(count), &value));
  if (value > UINT64_MAX / unit_bytes) {
    return invalid_argument("{} is too large; the largest number here is {}", text, UINT64_MAX);
  }
  *count.target = value * unit_bytes;
  return ok_status();
}
std::string write_value(const ByteCount& count) {
  for (const Unit& unit : kUnits) {
    if (*count.target != 0 && *count.target % unit.bytes == 0) {
      return fmt::format("{}{}", *count.target / unit.bytes, unit.name);
    }
  }
  return fmt::format("{}", *count.target);
}

std::string type_of(const Address&) { return "an address host:port"; }
Status read_value(const YAML::Node& node, const Address& address) {
  TESSERA_ASSIGN_OR_RETURN(const std::string text, scalar_text(node, type_of(address)));
  if (text.empty() && address.may_be_empty) {
    address.target->clear();
    return ok_status();
  }
  const size_t colon = text.rfind(':');
  uint16_t port = 0;
  const bool valid = colon != std::string::npos &&
                     is_host(std::string_view(text).substr(0, colon)) &&
                     parse_whole(text.substr(colon + 1), "", &port).ok();
  if (!valid) {
    return invalid_argument("expected {} (an IPv6 address in brackets, port at most 65535), got {}",
                            type_of(address), describe(node));
  }
  if (port == 0 && !address.may_have_port_0) {
    return invalid_argument("expected {} with the port to connect to, got {}", type_of(address),
                            describe(node));
  }
  *address.target = text;
  return ok_status();
}
std::string write_value(const Address& address) { return write_value(address.target); }

std::string type_of(const NumberOrAny&) { return "a whole number or 'any'"; }
Status read_value(const YAML::Node& node, const NumberOrAny& number) {
  TESSERA_ASSIGN_OR_RETURN(const std::string text, scalar_text(node, type_of(number)));
  if (text == "any") {
    number.target->reset();
    return ok_status();
  }
  uint32_t value = 0;
  TESSERA_RETURN_IF_ERROR(parse_whole(text, type_of(number), &value));
  *number.target = value;
  return ok_status();
}
std::string write_value(const NumberOrAny& number) {
  return number.target->has_value() ? fmt::format("{}", **number.target) : "any";
}

}  // namespace tessera::config
