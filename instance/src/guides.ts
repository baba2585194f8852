/** Help texts that a model or a person reads on demand, so that they cost no context otherwise. */

export const searchGuide = `# Raw search criteria

\`search_requests\` takes \`criteria\`: a list of {field, condition, value or values, logical_operator?, children?}.
Prefer its other parameters: they check names first and need no ids.

- Fields may be dotted: status.name, priority.id, technician.email_id, requester.name, group.name, site.name,
  udf_fields.<key>, display_id, created_time, last_updated_time, due_by_time, responded_time, resolved_time.
- Conditions: is, is not, contains, not contains, starts with, ends with, greater than, greater or equal,
  lesser than, lesser or equal, between, not between. It is "lesser", not "less".
- \`value\` for one, \`values\` for any of several. \`is\` without a value means empty; \`is not\` without a value means filled.
- Times are milliseconds since 1970, as strings.
- A list is read from left to right; each element after the first joins with its logical_operator (default AND).
- \`children\` make a bracket: the element's own test first, then each child with its logical_operator.

(open AND high) OR overdue-by-me:

    [{"field":"status.name","condition":"is","value":"Open",
      "children":[{"field":"priority.name","condition":"is","value":"High","logical_operator":"AND"}]},
     {"field":"technician.email_id","condition":"is","value":"me@example.com","logical_operator":"OR"}]
`

export const errorGuide = `# What errors mean

| ServiceDesk Plus says | Meaning | Do |
| --- | --- | --- |
| 3000 | a warning: nothing can be taken as done, often a mandatory field is empty | read the record, supply the named fields |
| 4001 | a value or id does not exist or may not be set | list_field_options, then again |
| 4002, HTTP 403 | this person may not, or the field is locked (closed ticket, priority matrix, role) | leave the field out, or ask somebody who may |
| 4005, 4008 | in use elsewhere; not unique | choose another value |
| 4007, HTTP 404 | no such record or address | check the number; merged and trashed tickets are gone |
| 4012 | mandatory fields are missing | ask for all named fields and send them at once |
| 4014, 4009 | read-only field | leave it out |
| 4015, HTTP 429 | too many calls | wait; usually five minutes |
| 4016, 4021 | times contradict each other; wrong type | correct the value |
| HTTP 401 with a fresh token | the grant lacks a scope | a person authorizes again with that scope |
| 5xx | the site failed | try again in a minute |

"indeterminate": a write got no answer. Read the record first; repeat only if the change is not there.
An authorization failure is never an empty list: no hits really means no hits.
`
