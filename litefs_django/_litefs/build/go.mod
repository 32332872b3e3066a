module litefs-django/build

go 1.21

require github.com/superfly/litefs v0.5.14
