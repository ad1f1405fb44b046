// StoredAccessControlList: whether the bytes of an extended attribute that the kernel takes for an access control list are one. Written
// from acl(5) and Docs/FORMAT.md, not shared with Volume, which writes them.
//
//   version 2, u32 │ tag u16, permissions u16, ID u32 │ …    owner 1, users 2, owning group 4, groups 8, mask 16, others 32
//
// A list that the kernel cannot read makes every access to its file fail.

package import Memory

package enum StoredAccessControlList {
    package static let names: Set<String> = ["system.posix_acl_access", "system.posix_acl_default"]

    /// True also of attributes that are no lists.
    package static func isValid(_ name: RawBytes, _ value: RawBytes, isDirectory: Bool) -> Bool {
        let text = name.text
        guard names.contains(text) else { return true }
        if text == "system.posix_acl_default" && !isDirectory { return false }
        guard value.count >= 4 + 3 * 8, value.count <= 4096, value.count % 8 == 4, value.u32(at: 0) == 2 else { return false }
        var counts: [UInt16: Int] = [:]
        var last: UInt16 = 0
        var named = Set<UInt64>()
        for at in stride(from: 4, to: value.count, by: 8) {
            let tag = value.u16(at: at)
            let id = value.u32(at: at + 4)
            guard [1, 2, 4, 8, 16, 32].contains(tag), tag >= last, value.u16(at: at + 2) & ~7 == 0 else { return false }
            if tag == 2 || tag == 8 {
                guard id != .max, named.insert(UInt64(tag) << 32 | UInt64(id)).inserted else { return false }
            } else if id != .max {
                return false
            }
            last = tag
            counts[tag, default: 0] += 1
        }
        return counts[1] == 1 && counts[4] == 1 && counts[32] == 1 && counts[16] ?? 0 <= 1 && (named.isEmpty || counts[16] == 1)
    }
}
