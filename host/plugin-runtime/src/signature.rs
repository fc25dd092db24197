//! The types of components in words, to tell what was expected from what was found.

use wasmtime::component::types::{Case, ComponentItem, Field, Type};

/// An item's type, much as WIT writes it. Names of parameters are left out, since callers do not use them.
pub(crate) fn describe(item: &ComponentItem) -> String {
    match item {
        ComponentItem::ComponentFunc(function) => {
            let keyword = if function.async_() { "async func" } else { "func" };
            let parameters = list(function.params().map(|(_, ty)| name(&ty)));
            match function.results().next() {
                Some(result) => format!("{keyword}({parameters}) -> {}", name(&result)),
                None => format!("{keyword}({parameters})"),
            }
        }
        ComponentItem::CoreFunc(_) => "a core function".to_owned(),
        ComponentItem::Module(_) => "a core module".to_owned(),
        ComponentItem::Component(_) => "a component".to_owned(),
        ComponentItem::ComponentInstance(_) => "an interface".to_owned(),
        ComponentItem::Type(_) => "a type".to_owned(),
        ComponentItem::Resource(_) => "a resource".to_owned(),
    }
}

fn name(ty: &Type) -> String {
    match ty {
        Type::Bool => "bool".to_owned(),
        Type::S8 => "s8".to_owned(),
        Type::U8 => "u8".to_owned(),
        Type::S16 => "s16".to_owned(),
        Type::U16 => "u16".to_owned(),
        Type::S32 => "s32".to_owned(),
        Type::U32 => "u32".to_owned(),
        Type::S64 => "s64".to_owned(),
        Type::U64 => "u64".to_owned(),
        Type::Float32 => "f32".to_owned(),
        Type::Float64 => "f64".to_owned(),
        Type::Char => "char".to_owned(),
        Type::String => "string".to_owned(),
        Type::List(list) => format!("list<{}>", name(&list.ty())),
        Type::Option(option) => format!("option<{}>", name(&option.ty())),
        Type::Tuple(tuple) => format!("tuple<{}>", list(tuple.types().map(|ty| name(&ty)))),
        Type::Record(record) => format!("record{{{}}}", list(record.fields().map(|field| self::field(&field)))),
        Type::Variant(variant) => format!("variant{{{}}}", list(variant.cases().map(|case| self::case(&case)))),
        Type::Enum(names) => format!("enum{{{}}}", list(names.names().map(str::to_owned))),
        Type::Flags(names) => format!("flags{{{}}}", list(names.names().map(str::to_owned))),
        Type::Result(result) => format!("result<{}, {}>", or_none(result.ok()), or_none(result.err())),
        Type::Own(_) => "a resource".to_owned(),
        Type::Borrow(_) => "a borrowed resource".to_owned(),
        _ => "a type that the host does not know".to_owned(),
    }
}

fn field(field: &Field<'_>) -> String {
    format!("{}: {}", field.name, name(&field.ty))
}

fn case(case: &Case<'_>) -> String {
    match &case.ty {
        Some(ty) => format!("{}({})", case.name, name(ty)),
        None => case.name.to_owned(),
    }
}

fn or_none(ty: Option<Type>) -> String {
    ty.map_or_else(|| "_".to_owned(), |ty| name(&ty))
}

fn list(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}
