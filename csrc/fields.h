// SPDX-License-Identifier: Apache-2.0
// Structs and functions of the C interface for Python. Structs are filled by name: `_native.Rows(data=...,
// dtype=..., ...)`, and so are the arguments of a function: `_native.verify(threads, target=..., ...)`. A
// call of an operator fills up to hundreds of structs, so they are plain extension types and functions:
// pybind11's own take several times as long.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "specdec.h"

namespace specdec {

namespace py = pybind11;

template <class T>
concept Struct = std::is_class_v<T> && std::is_aggregate_v<T>;
template <class T>
concept Sized = Struct<T> && requires(T value) { value.struct_size; };

// A struct, and what its lists became.
template <class T>
struct Filled {
  T value{};
  std::vector<std::vector<double>> lists;

  Filled() {
    if constexpr (Sized<T>) value.struct_size = sizeof(T), value.version = SPECDEC_ABI_VERSION;
  }
};

// A member under its own name, and how it is set: false where the value has another type. The name is
// interned, and is there for good.
struct Field {
  PyObject* name;
  bool (*set)(void* filled, PyObject* value);
};

// A struct as Python knows it.
template <class T>
struct Bound {
  struct Object {
    PyObject_HEAD Filled<T> filled;
  };
  static inline PyTypeObject* type = nullptr;
  static inline const char* name = nullptr;
  static inline std::vector<Field> fields;

  static T* of(PyObject* object) { return &reinterpret_cast<Object*>(object)->filled.value; }
};

// Pointers are addresses in Python, 0 = null; pointers to structs are these, or None. Who is called with a
// struct that points to others has to keep those.
template <class M>
bool assign(M& out, PyObject* value) {
  if constexpr (std::is_pointer_v<M>) {
    using To = std::remove_cv_t<std::remove_pointer_t<M>>;
    if constexpr (Sized<To>) {
      if (value != Py_None && Py_TYPE(value) != Bound<To>::type) return false;
      out = value == Py_None ? nullptr : Bound<To>::of(value);
    } else {
      if (!PyLong_Check(value)) return false;
      out = reinterpret_cast<M>(PyLong_AsUnsignedLongLong(value));
    }
  } else if constexpr (std::is_integral_v<M> || std::is_enum_v<M>) {
    if (!PyLong_Check(value)) return false;
    const long long number = PyLong_AsLongLong(value);
    out = static_cast<M>(number);
    return !PyErr_Occurred() && static_cast<long long>(out) == number;
  } else {
    static_assert(std::is_floating_point_v<M>);
    if (!PyFloat_Check(value) && !PyLong_Check(value)) return false;
    out = static_cast<M>(PyFloat_AsDouble(value));
  }
  return !PyErr_Occurred();
}

template <class T, auto member>
Field field(const char* name) {
  const auto set = [](void* filled, PyObject* value) {
    return assign(static_cast<Filled<T>*>(filled)->value.*member, value);
  };
  return {PyUnicode_InternFromString(name), set};
}

// A number, and the address of one for each request, or 0: a tuple in Python.
template <class T, auto number, auto array>
Field number_or_array(const char* name) {
  const auto set = [](void* filled, PyObject* value) {
    T& out = static_cast<Filled<T>*>(filled)->value;
    return PyTuple_Check(value) && PyTuple_GET_SIZE(value) == 2 &&
           assign(out.*number, PyTuple_GET_ITEM(value, 0)) && assign(out.*array, PyTuple_GET_ITEM(value, 1));
  };
  return {PyUnicode_InternFromString(name), set};
}

// An array of numbers and their count: a list in Python.
template <class T, auto array, auto count>
Field list(const char* name) {
  const auto set = [](void* filled, PyObject* value) {
    if (!PyList_Check(value)) return false;
    auto& [out, lists] = *static_cast<Filled<T>*>(filled);
    const Py_ssize_t size = PyList_GET_SIZE(value);
    std::vector<double>& numbers = lists.emplace_back(size);
    for (Py_ssize_t i = 0; i < size; ++i)
      if (!assign(numbers[i], PyList_GET_ITEM(value, i))) return false;
    out.*array = numbers.data();
    out.*count = size;
    return true;
  };
  return {PyUnicode_InternFromString(name), set};
}

// An array of structs, their count and their size: a list of them in Python.
template <class T, auto array, auto count, auto size>
Field structs(const char* name) {
  const auto set = [](void* filled, PyObject* value) {
    auto& [out, lists] = *static_cast<Filled<T>*>(filled);
    using S = std::remove_cv_t<std::remove_pointer_t<std::remove_reference_t<decltype(out.*array)>>>;
    if (!PyList_Check(value)) return false;
    const Py_ssize_t length = PyList_GET_SIZE(value);
    static_assert(sizeof(S) % sizeof(double) == 0);
    S* all = reinterpret_cast<S*>(lists.emplace_back(length * (sizeof(S) / sizeof(double))).data());
    for (Py_ssize_t i = 0; i < length; ++i) {
      PyObject* item = PyList_GET_ITEM(value, i);
      if (Py_TYPE(item) != Bound<S>::type) return false;
      all[i] = *Bound<S>::of(item);
    }
    out.*array = all;
    out.*count = length;
    out.*size = sizeof(S);
    return true;
  };
  return {PyUnicode_InternFromString(name), set};
}

// Where `name` stands in a tuple of names, -1 = nowhere.
inline Py_ssize_t find_name(PyObject* names, PyObject* name) {
  const Py_ssize_t count = names ? PyTuple_GET_SIZE(names) : 0;
  for (Py_ssize_t i = 0; i < count; ++i)
    if (PyUnicode_Compare(PyTuple_GET_ITEM(names, i), name) == 0) return i;
  return -1;
}

// Sets every field from the value of its name. False with a Python exception where one is missing, has the
// wrong type, or is none.
inline bool fill(void* filled, const char* type, const std::vector<Field>& fields, PyObject* const* values,
                 PyObject* names) {
  const Py_ssize_t given = names ? PyTuple_GET_SIZE(names) : 0,
                   count = static_cast<Py_ssize_t>(fields.size());
  for (Py_ssize_t i = 0; i < count; ++i) {
    const Field& field = fields[i];
    // Callers name the fields in their order, and their names are interned too.
    const bool in_order = i < given && PyTuple_GET_ITEM(names, i) == field.name;
    const Py_ssize_t place = in_order ? i : find_name(names, field.name);
    if (place < 0) return PyErr_Format(PyExc_TypeError, "%s needs %U", type, field.name), false;
    if (field.set(filled, values[place])) continue;
    PyErr_Clear();
    PyErr_Format(PyExc_TypeError, "%s cannot take %R as %U", type, values[place], field.name);
    return false;
  }
  for (Py_ssize_t i = 0; given > count && i < given; ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    bool known = false;
    for (const Field& field : fields) known |= PyUnicode_Compare(field.name, name) == 0;
    if (!known) return PyErr_Format(PyExc_TypeError, "%s was given an unknown field: %U", type, name), false;
  }
  return true;
}

template <class T>
PyObject* make(PyObject*, PyObject* const* values, size_t count, PyObject* names) {
  using B = Bound<T>;
  if (PyVectorcall_NARGS(count) != 0)
    return PyErr_Format(PyExc_TypeError, "%s takes its fields by name", B::name);
  PyObject* self = B::type->tp_alloc(B::type, 0);
  if (!self) return nullptr;
  auto* filled = new (&reinterpret_cast<typename B::Object*>(self)->filled) Filled<T>;
  if (fill(filled, B::name, B::fields, values, names)) return self;
  Py_DECREF(self);
  return nullptr;
}

template <class T>
void destroy(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  reinterpret_cast<typename Bound<T>::Object*>(self)->filled.~Filled<T>();
  type->tp_free(self);
  Py_DECREF(type);
}

// A class whose constructor takes every field by keyword, and no other; `fields` has their names.
template <Struct T>
void bind_struct(py::module_& module, const char* name, std::vector<Field> fields) {
  using B = Bound<T>;
  static const std::string full_name =  // Python 3.10 keeps the pointer
      py::cast<std::string>(module.attr("__name__")) + "." + name;
  PyType_Slot slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(&destroy<T>)}, {0, nullptr}};
  PyType_Spec spec{full_name.c_str(), sizeof(typename B::Object), 0,
                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  const py::object type = py::reinterpret_steal<py::object>(PyType_FromSpec(&spec));
  if (!type) throw py::error_already_set();
  B::type = reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr());
  B::type->tp_vectorcall = &make<T>;
  B::name = name;
  B::fields = std::move(fields);
  py::tuple names(B::fields.size());
  for (size_t i = 0; i < B::fields.size(); ++i) names[i] = py::handle(B::fields[i].name);
  type.attr("fields") = names;
  module.attr(name) = type;
}

inline PyObject* raise(specdec_result result) {
  if (result == SPECDEC_ERROR_MEMORY) return PyErr_NoMemory();
  PyErr_SetString(result == SPECDEC_ERROR_INTERNAL ? PyExc_RuntimeError : PyExc_ValueError,
                  specdec_error_message());
  return nullptr;
}

// A function of the C interface as Python knows it.
template <auto function>
struct BoundFunction {
  static inline const char* name = nullptr;
  static inline std::vector<Field> fields;
};

// Takes the number of threads, then every field of its struct by keyword. The interpreter lock is released.
template <auto function, class T>
PyObject* call(PyObject*, PyObject* const* values, Py_ssize_t count, PyObject* names) {
  using B = BoundFunction<function>;
  int32_t threads = 0;
  if (count != 1 || !assign(threads, values[0]))
    return PyErr_Format(PyExc_TypeError, "%s takes the number of threads, and its fields by name", B::name);
  Filled<T> filled;
  if (!fill(&filled, B::name, B::fields, values + 1, names)) return nullptr;
  PyThreadState* state = PyEval_SaveThread();
  const specdec_result result = function(&filled.value, threads);
  PyEval_RestoreThread(state);
  if (result != SPECDEC_OK) return raise(result);
  Py_RETURN_NONE;
}

template <auto function, class T>
void bind_function(py::module_& module, const char* name, std::vector<Field> fields) {
  using B = BoundFunction<function>;
  B::name = name;
  B::fields = std::move(fields);
  static std::string text;  // from which `inspect.signature` knows the fields
  text = std::string(name) + "(threads, /, *";
  for (const Field& field : B::fields) text += ", " + py::cast<std::string>(py::handle(field.name));
  text += ")\n--\n\n";
  static PyMethodDef method{name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&call<function, T>)),
                            METH_FASTCALL | METH_KEYWORDS, text.c_str()};
  const auto bound = py::reinterpret_steal<py::object>(PyCFunction_NewEx(&method, nullptr, nullptr));
  if (!bound) throw py::error_already_set();
  module.attr(name) = bound;
}

}  // namespace specdec
