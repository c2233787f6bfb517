#include "config/field.h"

#include <fmt/format.h>

namespace tessera::config {
namespace {

// Text for a cell: a vertical bar would end it.
std::string cell(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

std::string write_yaml(const FieldTable& table) {
  std::string out;
  std::string section;
  for (const Field& field : table) {
    if (field.section() != section) {
      section = field.section();
      out += fmt::format("{}:\n", section);
    }
    out += fmt::format("{}{}: {}\n", section.empty() ? "" : "  ", field.name(), field.write());
  }
  return out;
}

std::string write_reference(const FieldTable& table) {
  static constexpr char kHead[] =
      "| key | type | default | allowed | meaning |\n| --- | --- | --- | --- | --- |\n";
  std::string out;
  std::string section;
  for (const Field& field : table) {
    if (out.empty() || field.section() != section) {
      section = field.section();
      if (!out.empty()) out += '\n';
      if (!section.empty()) out += fmt::format("### {}\n\n", section);
      out += kHead;
    }
    out += fmt::format("| `{}` | {} | `{}` | {} | {} |\n", field.key, cell(field.type),
                       cell(field.write()), cell(field.allowed), cell(field.description));
  }
  return out;
}

}  // namespace tessera::config
