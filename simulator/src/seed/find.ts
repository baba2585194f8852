import { type Portal, rowsOf, type StoredRecord } from '../state.ts'

function found<T>(row: T | undefined, what: string): T {
  if (row === undefined) throw new Error(`seed: there is no ${what}`)
  return row
}

/** The ticket whose subject begins with `start`. */
export function ticketNamed(portal: Portal, start: string): StoredRecord {
  return found(
    rowsOf(portal, 'requests').find(row => String(row.subject).startsWith(start)),
    `ticket "${start}"`,
  )
}

/** A record by its title or name. */
export function recordNamed(portal: Portal, table: string, name: string): StoredRecord {
  return found(
    rowsOf(portal, table).find(row => row.title === name || row.name === name),
    `${table} "${name}"`,
  )
}

/** The id of a person by first name; technicians come first. */
export function personId(portal: Portal, firstName: string): string {
  const people = rowsOf(portal, 'users').filter(row => row.first_name === firstName)
  return found(people.find(row => row.is_technician === true) ?? people[0], `person "${firstName}"`).id
}
