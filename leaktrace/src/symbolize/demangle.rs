//! From symbols to names that people write. Only what compilers mangle is touched: `_Z…` of C++ and older Rust, `_R…` of
//! Rust. The letters of a short C name may well be the code of a C++ type (`f` would be `float`), so that it stays what it
//! is; so do `_D…` of D, which has no demangler here.
use std::borrow::Cow;

/// The name for people; the symbol itself where it is not mangled, or not well.
pub(super) fn demangle(symbol: &str) -> Cow<'_, str> {
    let Some(mangled) = mangled(symbol) else { return Cow::Borrowed(symbol) };
    let rust = || rustc_demangle::try_demangle(mangled).ok().map(|name| format!("{name:#}"));
    let cxx = || cpp_demangle::Symbol::new(mangled).ok().and_then(|name| name.demangle().ok());
    let name = if mangled.starts_with("_R") { rust() } else { rust().or_else(cxx) };
    name.map_or(Cow::Borrowed(symbol), Cow::Owned)
}

/// The mangled name in a symbol, without what linkers, other systems and link-time optimisation put around it.
fn mangled(symbol: &str) -> Option<&str> {
    let symbol =
        if symbol.starts_with("__Z") || symbol.starts_with("__R") { symbol.get(1..)? } else { symbol };
    if !symbol.starts_with("_Z") && !symbol.starts_with("_R") {
        return None;
    }
    let symbol = symbol.split('@').next().unwrap_or(symbol);
    Some(symbol.split(".llvm.").next().unwrap_or(symbol))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_of_c_stay_what_they_are() {
        for name in [
            "f",
            "g",
            "v",
            "St",
            "Pc",
            "i",
            "Ss",
            "main",
            "_start",
            "__GI_malloc",
            "N3fooE",
            "_D",
            "_Dmain",
            "",
            "R",
            "_",
        ] {
            assert_eq!(demangle(name), name);
        }
    }

    #[test]
    fn mangled_names_are_demangled_with_what_is_around_them() {
        for (symbol, name) in [
            ("_ZN4shop4CartIiE5outerEi", "shop::Cart<int>::outer(int)"),
            ("__ZN4shop4CartIiE5outerEi", "shop::Cart<int>::outer(int)"),
            ("_Znwm@@GLIBCXX_3.4", "operator new(unsigned long)"),
            ("_Znwm@GLIBCXX_3.4", "operator new(unsigned long)"),
            ("_ZN4shop3addEi.llvm.1234567890", "shop::add(int)"),
            ("_ZN4core3fmt5write17h0123456789abcdefE", "core::fmt::write"),
            ("_ZN4core3fmt5write17h0123456789abcdefE.llvm.42", "core::fmt::write"),
            ("_RNvC6_123foo3bar", "123foo::bar"),
        ] {
            assert_eq!(demangle(symbol), name, "{symbol}");
        }
    }

    #[test]
    fn what_only_looks_mangled_stays_as_it_is() {
        for name in ["_Z", "_Restart", "_ZN", "__Zero", "_R", "_ZN99999999999999999999a"] {
            assert_eq!(demangle(name), name);
        }
    }
}
