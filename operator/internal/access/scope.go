package access

import "slices"

// Scope says in which namespaces pins may name pull secrets. The zero value is all of them.
type Scope struct {
	// Off means in none: the operator then needs no right to Secrets, ServiceAccounts, Roles and RoleBindings.
	Off bool
	// Namespaces are the only ones, and the operator needs those rights there alone. Empty: all.
	Namespaces []string
}

// Allows reports whether pins of the namespace may name pull secrets.
func (s Scope) Allows(namespace string) bool {
	return !s.Off && (len(s.Namespaces) == 0 || slices.Contains(s.Namespaces, namespace))
}
