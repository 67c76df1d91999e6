"""The kernels' C contract for Python: collimate.h is read, so that nothing of it is said twice."""

import ctypes
import re

SCALARS = {
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "uint32_t": ctypes.c_uint32,
    "char": ctypes.c_char,
    "void": None,
}


class Header:
    """Constants, structs and functions of a header in the style of collimate.h."""

    def __init__(self, path):
        with open(path) as file:
            text = re.sub(r"/\*.*?\*/", " ", file.read(), flags=re.S)
        self.constants, self.structs, self.functions = {}, {}, {}
        for name, value in re.findall(r"^#define[ \t]+(\w+)[ \t]+(\S.*)$", text, flags=re.M):
            self.constants[name] = self._number(value)
        text = re.sub(r"^#.*$", "", text, flags=re.M).replace('extern "C" {', "")
        for body in re.findall(r"\benum\s+\w+\s*\{(.*?)\}\s*;", text, flags=re.S):
            self._enum(body)
        for body, name in re.findall(r"\btypedef\s+struct\s*(?:\w+\s*)?\{(.*?)\}\s*(\w+)\s*;", text, flags=re.S):
            self._struct(name, body)
        text = re.sub(r"\b(?:enum|typedef\s+struct)\b[^;{]*\{.*?\}[^;]*;", "", text, flags=re.S)
        for result, name, body in re.findall(r"(\w+)\s+(collimate_\w+)\s*\((.*?)\)\s*;", text, flags=re.S):
            parameters = [p for p in body.split(",") if p.strip() not in ("", "void")]
            self.functions[name] = (self._type(result), [self._declaration(p) for p in parameters])

    def _number(self, text):
        text = text.strip().strip("()")
        return self.constants[text] if text in self.constants else int(text, 0)

    def _enum(self, body):
        value = -1
        for item in filter(None, (item.strip() for item in body.split(","))):
            name, _, given = item.partition("=")
            value = self._number(given) if given else value + 1
            self.constants[name.strip()] = value

    def _struct(self, name, body):
        fields = []
        for statement in filter(None, (statement.strip() for statement in body.split(";"))):
            first, *others = statement.split(",")
            base = re.match(r"(?:const\s+)?\w+", first.strip())[0]
            for declaration in [first, *(f"{base} {other}" for other in others)]:
                fields.append(self._declaration(declaration))
        self.structs[name] = type(name, (ctypes.Structure,), {"_fields_": fields})

    def _declaration(self, text):
        """`const float *x`, `float x[4]` as (name, type)."""
        found = re.fullmatch(r"\s*(.*?)(\w+)\s*(?:\[\s*(\w*)\s*\])?\s*", text, flags=re.S)
        base, name, count = found.groups()
        if "*" in base:
            return name, ctypes.c_void_p
        kind = self._type(base)
        return name, kind * self._number(count) if count else kind

    def _type(self, text):
        name = text.replace("const", "").replace("enum", "").replace("struct", "").strip()
        if name in SCALARS:
            return SCALARS[name]
        return self.structs.get(name, ctypes.c_int32)


class Library:
    """The kernels of a shared library, called with the names of the header's parameters."""

    def __init__(self, path, header):
        self.header = Header(header)
        self._library = ctypes.CDLL(path)
        for name, (result, parameters) in self.header.functions.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, [kind for _, kind in parameters]

    def bind(self, function, **arguments):
        """The call, ready to be made again and again; it raises where the status is not 0."""
        name = f"collimate_{function}"
        names = [name for name, _ in self.header.functions[name][1]]
        if set(names) != set(arguments):
            wrong = sorted(set(names) ^ set(arguments))
            raise TypeError(f"{name}: missing or unknown arguments: {', '.join(wrong)}")
        call, kept = getattr(self._library, name), [arguments[name] for name in names]
        values = [_value(value) for value in kept]

        def run(_alive=kept):
            status = call(*values)
            if status:
                kind = "a cudaError_t" if status > 0 else "refused arguments"
                raise RuntimeError(f"{name} returned {status}: {kind}")

        return run

    def call(self, function, **arguments):
        """Queues one call."""
        self.bind(function, **arguments)()

    def number(self, function, *arguments):
        """What a function of numbers returns, such as the bytes of a workspace."""
        return getattr(self._library, f"collimate_{function}")(*arguments)

    def struct(self, name, **fields):
        """A struct of the header, its other fields zero."""
        return self.header.structs[f"collimate_{name}"](**{key: _value(value) for key, value in fields.items()})

    def constant(self, name):
        """A constant of the header."""
        return self.header.constants[f"COLLIMATE_{name}"]


def _value(value):
    """A tensor of torch as its address, an array as its address, a struct as a reference."""
    if hasattr(value, "data_ptr"):
        return value.data_ptr()
    if hasattr(value, "buffer_info"):
        return value.buffer_info()[0]
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    return value
