// SPDX-License-Identifier: Apache-2.0
// Structs for Python, filled by name: `_native.Rows(data=..., dtype=..., ...)`.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <type_traits>

#include "view.h"

namespace specdec {

namespace py = pybind11;

// A member under its own name. Pointers are addresses in Python, 0 = null.
template <class T, class M>
struct Field {
  py::str name;
  M T::* member;
};

template <class T, class Base, class M>
Field<T, M> field(const char* name, M Base::* member) {
  return {py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name)), static_cast<M T::*>(member)};
}

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

// A class whose constructor takes every field by keyword, and no other; `fields` has their names.
template <class T, class... M>
void bind_struct(py::module_& module, const char* name, Field<T, M>... fields) {
  py::class_<T> bound(module, name);
  bound.attr("fields") = py::make_tuple(fields.name...);
  bound.def(py::init([name = std::string(name), fields...](const py::kwargs& given) {
    T out{};
    const auto set = [&](const auto& f) {
      PyObject* value = PyDict_GetItemWithError(given.ptr(), f.name.ptr());
      if (!value) throw py::type_error(name + " needs " + std::string(f.name));
      assign(out.*f.member, value);
    };
    (set(fields), ...);
    if (given.size() != sizeof...(fields)) throw py::type_error(name + " was given an unknown field");
    return out;
  }));
}

}  // namespace specdec
