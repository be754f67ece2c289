// SPDX-License-Identifier: Apache-2.0
// Structs for Python, filled by name: `_native.Rows(data=..., dtype=..., ...)`.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "view.h"

namespace specdec {

namespace py = pybind11;

// A member under its own name, and how it is set. The name is interned, and is there for good.
struct Field {
  PyObject* name;
  void (*set)(void* object, py::handle value);
};

// Pointers are addresses in Python, 0 = null.
template <class M>
void assign(M& out, py::handle value) {
  if constexpr (std::is_pointer_v<M>) {
    out = reinterpret_cast<M>(py::cast<std::uintptr_t>(value));
  } else if constexpr (std::is_same_v<M, PerRequest>) {  // one number, and the address of [B] or 0
    const auto [number, values] = py::cast<std::tuple<double, std::uintptr_t>>(value);
    out = {reinterpret_cast<const double*>(values), number};
  } else {
    out = py::cast<M>(value);
  }
}

template <class T, auto member>
Field field(const char* name) {
  const auto set = [](void* object, py::handle value) { assign(static_cast<T*>(object)->*member, value); };
  return {PyUnicode_InternFromString(name), set};
}

inline void fill(void* object, const char* name, const std::vector<Field>& fields, const py::kwargs& given) {
  for (const Field& field : fields) {
    PyObject* value = PyDict_GetItemWithError(given.ptr(), field.name);
    if (!value) throw py::type_error(std::string(name) + " needs " + std::string(py::str(field.name)));
    field.set(object, value);
  }
  if (given.size() != fields.size()) throw py::type_error(std::string(name) + " was given an unknown field");
}

// A class whose constructor takes every field by keyword, and no other; `fields` has their names.
template <class T>
void bind_struct(py::module_& module, const char* name, std::vector<Field> fields) {
  py::class_<T> bound(module, name);
  py::tuple names(fields.size());
  for (size_t i = 0; i < fields.size(); ++i) names[i] = py::handle(fields[i].name);
  bound.attr("fields") = names;
  bound.def(py::init([name, fields = std::move(fields)](const py::kwargs& given) {
    T out{};
    fill(&out, name, fields, given);
    return out;
  }));
}

}  // namespace specdec
