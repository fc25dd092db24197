//! The functions of the language.

macro_rules! functions {
    ($($variant:ident $name:literal $(or $other:literal)? $fewest:literal..=$most:expr),* $(,)?) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Function { $($variant),* }

        impl Function {
            #[cfg(test)]
            pub(super) const ALL: &'static [Function] = &[$(Function::$variant),*];

            pub(super) fn name(self) -> &'static str {
                match self { $(Function::$variant => $name),* }
            }

            /// Case-insensitive.
            pub(super) fn by_name(name: &str) -> Option<Function> {
                $(if name.eq_ignore_ascii_case($name) $(|| name.eq_ignore_ascii_case($other))? {
                    return Some(Function::$variant);
                })*
                None
            }

            /// How many arguments it takes.
            pub(super) fn arity(self) -> std::ops::RangeInclusive<usize> {
                match self { $(Function::$variant => $fewest..=$most),* }
            }
        }
    };
}

functions! {
    IsDefined "IS_DEFINED" 1..=1,
    IsArray "IS_ARRAY" 1..=1,
    IsBool "IS_BOOL" 1..=1,
    IsNull "IS_NULL" 1..=1,
    IsNumber "IS_NUMBER" 1..=1,
    IsObject "IS_OBJECT" 1..=1,
    IsPrimitive "IS_PRIMITIVE" 1..=1,
    IsString "IS_STRING" 1..=1,
    AsNumber "AS_NUMBER" 1..=1,
    Abs "ABS" 1..=1,
    Exp "EXP" 1..=1,
    Power "POWER" 2..=2,
    Square "SQUARE" 1..=1,
    Ceiling "CEILING" 1..=1,
    Floor "FLOOR" 1..=1,
    Sign "SIGN" 1..=1,
    Sqrt "SQRT" 1..=1,
    Concat "CONCAT" 2..=usize::MAX,
    Length "LENGTH" 1..=1,
    Lower "LOWER" 1..=1,
    Upper "UPPER" 1..=1,
    Substring "SUBSTRING" 2..=3,
    IndexOf "INDEX_OF" 2..=2,
    // Twin queries of IoT Hub know the first name, routes the second.
    StartsWith "STARTSWITH" or "STARTS_WITH" 2..=2,
    EndsWith "ENDSWITH" or "ENDS_WITH" 2..=2,
    Contains "CONTAINS" 2..=2,
}
