#include "symbols.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace emulation {
namespace {

struct Library {
  std::uintptr_t base;
  std::vector<Symbol> functions, thread_locals;
};

std::string demangled(const char* name) {
  char* plain = abi::__cxa_demangle(name, nullptr, nullptr, nullptr);
  const std::string result = plain ? plain : name;
  std::free(plain);
  return result;
}

// Sorts the symbols of a table into the library's.
void read_table(const std::string& file, const Elf64_Shdr& table, const Elf64_Shdr& names,
                Library& library) {
  const auto* symbols = reinterpret_cast<const Elf64_Sym*>(file.data() + table.sh_offset);
  for (std::size_t i = 0; i < table.sh_size / sizeof(Elf64_Sym); ++i) {
    const Elf64_Sym& s = symbols[i];
    const char* name = file.data() + names.sh_offset + s.st_name;
    const int type = ELF64_ST_TYPE(s.st_info);
    if (s.st_shndx == SHN_UNDEF) continue;
    if (type == STT_FUNC) library.functions.push_back({name, s.st_value, s.st_size});
    if (type == STT_TLS) library.thread_locals.push_back({demangled(name), s.st_value, s.st_size});
  }
}

Library read_library() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&read_library), &info))
    throw std::runtime_error("emulation: no library");
  std::ifstream stream(info.dli_fname, std::ios::binary);
  const std::string file{std::istreambuf_iterator<char>(stream), {}};
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(file.data());
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(file.data() + header->e_shoff);
  Library library{reinterpret_cast<std::uintptr_t>(info.dli_fbase), {}, {}};
  for (int i = 0; i < header->e_shnum; ++i)
    if (sections[i].sh_type == SHT_SYMTAB)
      read_table(file, sections[i], sections[sections[i].sh_link], library);
  return library;
}

const Library& library() {
  static const Library value = read_library();
  return value;
}

// Without the namespaces that all kernels are in.
std::string short_name(const Symbol& function) {
  std::string name = demangled(function.name.c_str());
  for (const std::string prefix : {"void ", "flowkern::", "cuda::", "(anonymous namespace)::"})
    for (std::size_t at; (at = name.find(prefix)) != std::string::npos;) name.erase(at, prefix.size());
  return name;
}

}  // namespace

const std::vector<Symbol>& thread_local_symbols() { return library().thread_locals; }

std::uint64_t thread_local_offset(const std::string& name) {
  for (const Symbol& symbol : thread_local_symbols())
    if (symbol.name == name) return symbol.offset;
  throw std::runtime_error("emulation: no symbol " + name);
}

std::string function_name(const void* function) {
  const auto at = reinterpret_cast<std::uintptr_t>(function) - library().base;
  for (const Symbol& symbol : library().functions)
    if (symbol.offset == at) return short_name(symbol);
  return "?";
}

std::vector<std::string> function_names() {
  std::vector<std::string> names;
  for (const Symbol& symbol : library().functions) names.push_back(short_name(symbol));
  return names;
}

std::string code_place(const void* address) {
  char text[32];
  const auto offset = reinterpret_cast<std::uintptr_t>(address) - library().base;
  std::snprintf(text, sizeof text, " [+0x%llx]", static_cast<unsigned long long>(offset));
  return text;
}

}  // namespace emulation
